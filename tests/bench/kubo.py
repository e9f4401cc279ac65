"""Chiral and Kubo give each other a file, and Kubo gives it to Kubo."""
import contextlib
import os
import pathlib
import shutil
import subprocess

from common import MIB, ROUNDS, SIZE, Daemon, farther, noise, rate, read, sh, table, timed, times, touch_page_cache
import peers

PROGRAM = os.environ.get("KUBO")
# What is measured is the way of the bytes; announcing 4,000 blocks beside it would only slow Kubo down.
SETTINGS = [("Provide.Enabled", False), ("Gateway.NoFetch", True)]


def missing(lane):
    """Says what a lane cannot do without Kubo."""
    if not PROGRAM:
        print(f"\n## {lane}: not measured beside Kubo, KUBO=/path/to/ipfs is missing", flush=True)
    return not PROGRAM


@contextlib.contextmanager
def node(lab, name, mounted=False):
    """A Kubo daemon, perhaps with its mounts, in folders that go with it."""
    home, mounts = lab / name, lab / f"{name}-mounts"
    settings = list(SETTINGS)
    for kind in ("IPFS", "IPNS", "MFS") if mounted else ():
        (mounts / kind).mkdir(parents=True)
        settings.append((f"Mounts.{kind}", str(mounts / kind)))
    kubo = peers.Kubo(PROGRAM, home, [peers.LISTEN["tcp"]], settings, ["--mount"] if mounted else [])
    kubo.mount = mounts / "IPFS"
    try:
        yield kubo
    finally:
        kubo.close()
        for mount in mounts.glob("*"):
            if os.path.ismount(mount):
                subprocess.run(["fusermount3", "-u", str(mount)], check=True)
        shutil.rmtree(home)
        shutil.rmtree(mounts, ignore_errors=True)


def address(kubo):
    return peers.address(kubo, "tcp")


def ipfs(kubo, *args, out=subprocess.DEVNULL):
    """A command whose output nobody wants, however long it takes."""
    subprocess.run([PROGRAM, *args], env={**os.environ, **kubo.env}, stdout=out, stderr=subprocess.DEVNULL, check=True)


def check(kubo, cid, expected):
    """The bytes that came are the right ones, and are all there."""
    cat = subprocess.Popen([PROGRAM, "cat", "--offline", cid], env={**os.environ, **kubo.env}, stdout=subprocess.PIPE)
    assert sh("sha256sum", stdin=cat.stdout).split()[0] == expected, "wrong bytes"
    assert cat.wait() == 0


class Transfer:
    """One file that readers fetch which have nothing yet, from one publisher each."""

    def __init__(self, lab, cid, expected):
        self.lab, self.cid, self.expected = lab, cid, expected

    def to_chiral(self, publisher):
        """Seconds of a read through our mount."""
        reader = Daemon(self.lab, "reader", "--peer", publisher)
        reader.wait_for_peer()
        spent = timed(lambda: read(reader.mount / self.cid))
        assert sh("sha256sum", reader.mount / self.cid).split()[0] == self.expected, "wrong bytes"
        reader.forget()
        return spent

    def to_kubo(self, publisher, how):
        """Seconds of a read through Kubo's mount, of `ipfs cat` or of `ipfs pin add`."""
        with node(self.lab, "reader", mounted=how == "mount") as reader:
            reader.connect(publisher)
            ways = {"mount": lambda: read(reader.mount / self.cid), "cat": lambda: ipfs(reader, "cat", self.cid),
                    "pin add": lambda: ipfs(reader, "pin", "add", self.cid)}
            spent = timed(ways[how])
            reached = {line.rpartition("/p2p/")[0] for line in reader.cli("swarm", "peers").split()}
            assert reached == {publisher.rpartition("/p2p/")[0]}, f"it came another way: {reached}"
            check(reader, self.cid, self.expected)
        return spent


def interleaved(lab, cells):
    """Runs each cell once a round; the seconds of each."""
    spent = {name: [] for name in cells}
    for _ in range(ROUNDS):
        for name, cell in cells.items():
            touch_page_cache(lab, SIZE * 2)
            spent[name].append(cell())
    return spent


@contextlib.contextmanager
def publishers(lab):
    """One file at a chiral and a Kubo node: it, and their addresses."""
    source = pathlib.Path(lab) / "source"
    noise(source, SIZE)
    with node(lab, "kubo") as theirs:
        ours = Daemon(lab, "publisher")
        cid = ours.publish(source, "file")
        assert theirs.add(source, {}) == cid, "the ids differ"
        yield Transfer(lab, cid, sh("sha256sum", source).split()[0]), ours.address(), address(theirs)
        ours.stop()


def kubo(lab):
    if missing("kubo"):
        return
    with publishers(lab) as (transfer, ours, theirs):
        spent = interleaved(lab, {
            "chiral-chiral": lambda: transfer.to_chiral(ours),
            "kubo-kubo mount": lambda: transfer.to_kubo(theirs, "mount"),
            "kubo-chiral": lambda: transfer.to_chiral(theirs),
            "kubo-kubo cat": lambda: transfer.to_kubo(theirs, "cat"),
            "chiral-kubo cat": lambda: transfer.to_kubo(ours, "cat"),
            "kubo-kubo pin": lambda: transfer.to_kubo(theirs, "pin add"),
            "chiral-kubo pin": lambda: transfer.to_kubo(ours, "pin add")})

    def row(what, ours, theirs, reach):
        return what, rate(spent[ours]), rate(spent[theirs]), times(spent[ours], spent[theirs]), reach

    table(f"kubo: first fetch of {MIB} MiB from one peer", [
        row("chiral → chiral, our mount; Kubo → Kubo, its mount", "chiral-chiral", "kubo-kubo mount", "≥ 10"),
        row("Kubo → chiral, our mount; Kubo → Kubo, cat", "kubo-chiral", "kubo-kubo cat", "≥ 2"),
        row("chiral → Kubo, cat; Kubo → Kubo, cat", "chiral-kubo cat", "kubo-kubo cat", "≥ 1.3"),
        row("chiral → Kubo, pin add; Kubo → Kubo, pin add", "chiral-kubo pin", "kubo-kubo pin", "≥ 1.3")])


def kubo25(lab):
    if missing("kubo25"):
        return
    with publishers(lab) as (transfer, ours, theirs), farther(ours, 25) as ours, farther(theirs, 25) as theirs:
        spent = interleaved(lab, {
            "ours": lambda: transfer.to_kubo(ours, "pin add"), "theirs": lambda: transfer.to_kubo(theirs, "pin add")})
    table(f"kubo25: {MIB} MiB into Kubo by `pin add`, 25 ms each way", [
        ("chiral → Kubo; Kubo → Kubo", rate(spent["ours"]), rate(spent["theirs"]), times(spent["ours"], spent["theirs"]), "≥ 3")])
