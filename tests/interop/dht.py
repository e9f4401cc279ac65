"""Five nodes of chiral and five of boxo in one DHT on this machine: what each provides is found and read by one of the
other kind, which nobody has connected to it.

    dht.py FOLDER BOXO    FOLDER: an empty scratch folder
"""
import pathlib
import random
import sys
import time

import peers

EACH = 5
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


def main():
    folder, program = pathlib.Path(sys.argv[1]), sys.argv[2]
    slow = []
    with peers.Lab(folder, {"boxo": program}) as lab:
        boxo = [lab.start("boxo") for _ in range(EACH)]
        chiral = [lab.start("chiral") for _ in range(EACH)]
        # Everybody knows the first node alone and finds the others through it.
        entry = peers.address(boxo[0], "tcp")
        for node in boxo[1:] + chiral:
            node.connect(entry)
        ids = {node.id for node in chiral}
        for node in boxo:
            until("the tables know all nodes of chiral", lambda: ids <= set(node.order(do="table")["found"] or []))
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
        for n in range(EACH):
            other = (n + 2) % EACH
            path = content(lab, 100 + n)
            # An upload rests for ten seconds before it is announced, for whoever writes it may go on.
            began = time.monotonic()
            cid = chiral[n].add(path, {})
            until("its record is found", lambda: found_by(boxo[other], chiral[n].id, cid))
            announced = time.monotonic() - began
            boxo[other].order(do="disconnect", id=chiral[n].id)
            found = until("its record is found again", lambda: found_by(boxo[other], chiral[n].id, cid))
            _, read = peers.timed(lambda: boxo[other].get(cid, out))
            peers.same(path, out)
            out.unlink()
            print(f"| chiral {n} | boxo {other} | {announced:.3f} s | {found:.3f} s | {read:.3f} s |", flush=True)
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
