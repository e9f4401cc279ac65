"""Five nodes of chiral and thirty of boxo in one DHT on this machine: what each provides is found and read by one of the
other kind, which nobody has connected to it and which does not keep the record itself.

    dht.py FOLDER BOXO    FOLDER: an empty scratch folder
"""
import itertools
import pathlib
import random
import sys
import time

import peers

EACH = 5
# Further nodes of the DHT: a record is kept by 20, and who keeps it need not look it up.
CROWD = 25
# Longest that a lookup may take here; nothing is far away.
REACH = 1.0


def until(what, work, patience=60):
    """The first answer of `work` that is not empty."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := work():
            return answer
        time.sleep(0.2)
    raise peers.Failed(f"{what}: not within {patience} s")


def content(lab, number):
    path = lab.folder / f"content-{number}"
    path.write_bytes(random.Random(number).randbytes(3_000_000 + number))
    return path


def found_by(boxo, provider, cid):
    """Seconds until the first provider came, once it is the one looked for."""
    answer = boxo.order(do="find", cid=cid)
    return answer.get("first") if provider in (answer.get("found") or []) else None


def holds(boxo, provider, cid):
    """Whether a node keeps the record of a provider itself."""
    return provider in (boxo.order(do="holds", cid=cid).get("found") or [])


def at_rest(boxo, provider, cid):
    """Whether the number of nodes that keep a record did not change for a second."""
    before = [holds(node, provider, cid) for node in boxo]
    time.sleep(1)
    return before == [holds(node, provider, cid) for node in boxo]


def main():
    folder, program = pathlib.Path(sys.argv[1]), sys.argv[2]
    slow = []
    with peers.Lab(folder, {"boxo": program}) as lab:
        boxo = [lab.start("boxo", ("tcp",), "-crowd", str(CROWD))] + [lab.start("boxo") for _ in range(EACH - 1)]
        chiral = [lab.start("chiral") for _ in range(EACH)]
        # Everybody knows the first node alone and finds the others through it.
        entry = peers.address(boxo[0], "tcp")
        for node in boxo[1:] + chiral:
            node.connect(entry)
        ids = {node.id for node in chiral}
        # A table has room for twenty of each half of the others.
        tables = lambda: [set(node.order(do="table").get("found") or []) for node in boxo]
        until("the tables know the nodes of chiral and enough others",
              lambda: ids <= set().union(*tables()) and all(len(table) >= 20 for table in tables()))
        out = lab.folder / "out"
        print("| provided by | found by | announced | found after | read |\n|---|---|---|---|---|")
        for n in range(EACH):
            other = (n + 1) % EACH
            path = content(lab, n)
            cid = boxo[n].add(path, {})
            _, announced = peers.timed(lambda: boxo[n].provide(cid))
            boxo[n].order(do="disconnect", id=chiral[other].id)
            _, found = peers.timed(lambda: (chiral[other].mount / cid).stat())
            _, read = peers.timed(lambda: chiral[other].get(cid, out))
            peers.same(path, out)
            out.unlink()
            print(f"| boxo {n} | chiral {other} | {announced:.3f} s | {found:.3f} s | {read:.3f} s |", flush=True)
            slow += [found] * (found > REACH)
        numbers = itertools.count(100)
        for n in range(EACH):
            other = None
            while not other:
                path = content(lab, next(numbers))
                # An upload rests for ten seconds before it is announced, for whoever writes it may go on.
                began = time.monotonic()
                cid = chiral[n].add(path, {})
                until("somebody keeps its record", lambda: any(holds(node, chiral[n].id, cid) for node in boxo))
                announced = time.monotonic() - began
                # Those that are told last keep theirs within the second look.
                until("its record is at rest", lambda: at_rest(boxo, chiral[n].id, cid))
                # All of them keep one record in twenty.
                other = next((node for node in boxo if not holds(node, chiral[n].id, cid)), None)
            other.order(do="disconnect", id=chiral[n].id)
            found = until("its record is found", lambda: found_by(other, chiral[n].id, cid))
            assert not holds(other, chiral[n].id, cid), "whoever looked it up keeps the record"
            _, read = peers.timed(lambda: other.get(cid, out))
            peers.same(path, out)
            out.unlink()
            print(f"| chiral {n} | boxo {boxo.index(other)} | {announced:.3f} s | {found:.3f} s | {read:.3f} s |", flush=True)
            slow += [found] * (found > REACH)
        # Two nodes of chiral, with boxo's between them.
        path = content(lab, 200)
        cid = chiral[0].add(path, {})
        until("its record is found", lambda: found_by(boxo[1], chiral[0].id, cid))
        _, found = peers.timed(lambda: (chiral[3].mount / cid).stat())
        chiral[3].get(cid, out)
        peers.same(path, out)
        print(f"| chiral 0 | chiral 3 | | {found:.3f} s | |")
    if slow:
        sys.exit(f"dht: {len(slow)} lookups over {REACH} s: {slow}")
    print("dht: everything was found and read")


main()
