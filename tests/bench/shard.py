"""`ls -l` of a sharded directory of which nothing is here."""
import contextlib
import shutil
import subprocess

import kubo
from common import ROUNDS, Daemon, seconds, sh, table, timed, times

# With these names Kubo and chiral spread the directory over a HAMT.
ENTRIES = 5200
# Kubo's mount fetches one entry after the other.
PATIENCE = 600


def ls(path, native):
    """Seconds of `ls -l`; every entry has its right length."""
    listed = []
    try:
        spent = timed(lambda: listed.extend(sh("ls", "-l", path, timeout=PATIENCE).splitlines()[1:]))
    except subprocess.TimeoutExpired:
        return float("inf")
    lengths = {fields[-1]: int(fields[4]) for fields in map(str.split, listed)}
    assert lengths == {entry.name: entry.stat().st_size for entry in native.iterdir()}, "a wrong listing"
    return spent


def by_chiral(lab, address, cid, native, used=None):
    reader = Daemon(lab, "reader", "--peer", address)
    reader.wait_for_peer()
    before = reader.cpu()
    spent = ls(reader.mount / cid, native)
    if used is not None:
        used.append(reader.cpu() - before)
    reader.forget()
    return spent


def by_kubo(lab, address, cid, native):
    with kubo.node(lab, "reader", mounted=True) as reader:
        reader.connect(address)
        return ls(reader.mount / cid, native)


def shard(lab):
    native = lab / "native"
    native.mkdir()
    for n in range(ENTRIES):
        (native / f"file-{n:06}").write_text(f"{n}\n")
    publisher = Daemon(lab, "publisher")
    shutil.copytree(native, publisher.mount / "upload" / "dir")
    cid = publisher.cid("dir")
    ours, used, from_kubo, theirs = [], [], [], []
    with contextlib.ExitStack() as stack:
        other = None
        if not kubo.missing("shard"):
            other = stack.enter_context(kubo.node(lab, "kubo"))
            assert other.add(native, {}) == cid, "the ids differ"
        for _ in range(ROUNDS):
            ours.append(by_chiral(lab, publisher.address(), cid, native, used))
            if other:
                from_kubo.append(by_chiral(lab, kubo.address(other), cid, native))
        if other:
            # Once: it takes minutes, and the ratio needs no median.
            theirs.append(by_kubo(lab, kubo.address(other), cid, native))
    publisher.stop()
    rows = [("chiral → chiral, our mount; Kubo → Kubo, its mount", seconds(ours), seconds(theirs) if theirs else "",
             times(ours, theirs) if theirs else "", "≤ 1 s"),
            # Holds also on a loaded machine, where the time says little.
            ("processor time of the reader", seconds(used), "", "", "")]
    if from_kubo:
        rows.append(("Kubo → chiral, our mount; Kubo → Kubo, its mount", seconds(from_kubo), seconds(theirs), times(from_kubo, theirs), ""))
    table(f"shard: ls -l of {ENTRIES} entries in a HAMT, from one peer, nothing cached", rows)
