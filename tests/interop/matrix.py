"""Foreign peers and chiral give each other every shape of content, in both directions, over TCP and QUIC.

    matrix.py FOLDER KIND PROGRAM…    KIND: boxo, helia or kubo; FOLDER: an empty scratch folder
"""
import pathlib
import subprocess
import sys

import peers
import shapes


class Matrix:
    def __init__(self):
        self.failed = 0

    def cell(self, direction, transport, shape, work):
        try:
            _, seconds = peers.timed(work)
            verdict = f"ok {seconds:6.2f} s"
        except (peers.Failed, OSError, subprocess.SubprocessError) as error:
            self.failed += 1
            verdict = f"FAILED: {str(error)[:300]}"
        print(f"| {direction:28} | {transport:4} | {shape:18} | {verdict} |", flush=True)


def fetch_and_compare(node, cid, content, out):
    try:
        node.get(cid, out)
        peers.same(content, out)
    finally:
        peers.remove(out)


def check_stats(content, got):
    """Mode and time are those that the DAG holds."""
    wanted, stat = content.stat(), got.stat()
    if (stat.st_mode & 0o777, int(stat.st_mtime)) != (wanted.st_mode & 0o777, int(wanted.st_mtime)):
        raise peers.Failed(f"mode and time are {stat.st_mode & 0o777:o} {stat.st_mtime}")


def read_foreign(chiral, cid, content, shape, out):
    fetch_and_compare(chiral, cid, content, out)
    if shape.get("keep_stats"):
        check_stats(content, chiral.mount / cid)


def over(lab, kind, transport, contents, matrix):
    out = lab.folder / "out"
    both = list(dict.fromkeys([transport, "tcp"]))
    chiral = lab.start("chiral", both)
    foreign = lab.start(kind, [transport])
    theirs = {}
    for name, (_, shape, builders) in shapes.SHAPES.items():
        if builders is None or kind in builders:
            theirs[name] = (foreign.add(contents[name], shape), contents[name], shape)
    # Chiral dials here, the foreign peer below.
    chiral.connect(peers.address(foreign, transport))
    for name, (cid, content, shape) in theirs.items():
        matrix.cell(f"{kind} → chiral", transport, name, lambda: read_foreign(chiral, cid, content, shape, out))
    lab.end(foreign)

    fresh = lab.start(kind, [transport])
    fresh.connect(peers.address(chiral, transport))
    for name, (content, shape, _) in shapes.SHAPES.items():
        # Helia has no symbolic links.
        if not shape and (kind != "helia" or content != "tree"):
            path, cid = contents[name], chiral.add(contents[name], shape)
            matrix.cell(f"chiral → {kind}", transport, name, lambda: fetch_and_compare(fresh, cid, path, out))
    for name, (cid, content, shape) in theirs.items():
        if shape:
            matrix.cell(f"{kind} → chiral → {kind}", transport, name, lambda: fetch_and_compare(fresh, cid, content, out))
    lab.end(fresh)
    lab.end(chiral)


def main():
    folder, kind, program = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    contents = shapes.make(folder / "contents")
    matrix = Matrix()
    print(f"| {'direction':28} | over | {'shape':18} | |\n|---|---|---|---|")
    with peers.Lab(folder, {kind: program if kind == "helia" else program[0]}) as lab:
        for transport in ("tcp", "quic"):
            over(lab, kind, transport, contents, matrix)
    if matrix.failed:
        sys.exit(f"{kind}: {matrix.failed} cells failed")
    print(f"{kind}: every cell passed")


main()
