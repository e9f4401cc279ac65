"""Reads through the mount that are not one after the other: seeks, many files, many torrents, a film."""
import concurrent.futures
import json
import socket
import subprocess
import threading
import time

import lab
from daemon import Failed, run
from foreign import Libtorrent, hash_of, link, until
from lab import MIB, expect, fast, path_of, rate

# What a session sleeps that nobody wakes is five seconds: a read that is so slow has met that.
STALL = 4


def seek(scene, table):
    """Somebody reads 64 KiB in many places while another one streams the front at full rate."""
    for cap in (None, 20_000_000):
        for kib in (256, 1024, 4096):
            # A piece is the least that can be verified, so the least that is waited for. Before it come 2 MiB that a peer was
            # asked for already, and libtorrent paces by itself.
            reach = 0.1 if cap is None else None
            name = f"{f'{cap // 1_000_000} MB/s' if cap else 'uncapped'}, pieces of {kib} KiB"
            table.attempt("seek", name, lambda: seek_amid(scene, cap, kib << 10, reach))


def seek_amid(scene, cap, piece, reach):
    large, _ = scene.contents.large()
    info = scene.contents.torrent(large, piece=piece)
    client, chiral = scene.client(Libtorrent), scene.chiral()
    named = link(info, client.seed(info, large.parent, cap))
    names, _ = lab.listing(path_of(chiral, named))
    path, size, stop, done = path_of(chiral, named) / names[0], large.stat().st_size, threading.Event(), [0]

    def stream():
        with open(path, "rb", buffering=0) as file:
            while not stop.is_set() and (part := file.read(1 << 20)):
                done[0] += len(part)
    taken = []
    with concurrent.futures.ThreadPoolExecutor() as pool, open(path, "rb", buffering=0) as file, open(large, "rb") as source:
        front = pool.submit(stream)
        try:
            until("the front", lambda: done[0] > size // 100 or front.done(), 30)
            for part in (90, 70, 95, 80, 60):
                # The front is still far from here.
                expect("the front goes on", front.done(), False)
                at = size // 100 * part
                asked = time.perf_counter()
                file.seek(at)
                got = file.read(1 << 16)
                taken.append(time.perf_counter() - asked)
                source.seek(at)
                expect(f"the bytes at {part} %", got == source.read(len(got)), True)
                time.sleep(0.1)
        finally:
            stop.set()
    for one in (chiral, client):
        scene.end(one)
    told = " ".join(f"{seconds:.3f}" for seconds in taken) + " s"
    return (told, f"each ≤ {reach} s", max(taken) <= reach) if reach else (told,)


def read_all(paths):
    """Reads files side by side; how each went."""
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(lab.Reading, paths))


def side_by_side(reads, seconds, digests):
    expect("the digests", [read.sha256 for read in reads], digests)
    longest, size = max(max(read.longest, read.first) for read in reads), sum(read.size for read in reads)
    return [("all of them", *rate(size, seconds)), ("longest read", *fast(longest, STALL))]


def files(scene, table, count=40):
    """All files of one torrent are open and read at once."""
    tree = scene.folder / "tree"
    tree.mkdir()
    for number in range(count):
        lab.noise(tree / f"file {number:02}", (MIB << 20) // count + number, number)

    def work():
        info = scene.contents.torrent(tree)
        client, chiral = scene.client(Libtorrent), scene.chiral()
        there = path_of(chiral, link(info, client.seed(info, tree.parent)))
        names, _ = lab.listing(there)
        expect("the listing", sorted(names), sorted(p.name for p in tree.iterdir()))
        seconds, reads = lab.timed(lambda: read_all([there / name for name in sorted(names)]))
        return side_by_side(reads, seconds, [lab.sha256(tree / name) for name in sorted(names)])
    table.attempt("files", f"{count} files of one torrent at once", work)


def torrents(scene, table, count=20):
    """Torrents of a seed each are listed and read at once."""
    folder = scene.folder / "given"
    folder.mkdir()

    def work():
        chiral, links, sums = scene.chiral(), [], []
        for number in range(count):
            path = folder / f"torrent {number:02}"
            lab.noise(path, (MIB << 20) // count + number, number)
            info, client = scene.contents.torrent(path), scene.client(Libtorrent)
            links.append(path_of(chiral, link(info, client.seed(info, folder))) / path.name)
            sums.append(lab.sha256(path))
        seconds, reads = lab.timed(lambda: read_all(links))
        return side_by_side(reads, seconds, sums)
    table.attempt("torrents", f"{count} torrents at once", work)


class Player:
    """mpv, which tells when it plays and when it has nothing to show."""

    def __init__(self, folder, path):
        at = folder / "mpv"
        self.began = time.perf_counter()
        self.process = subprocess.Popen(["mpv", "--no-config", "--vo=null", "--ao=null", "--no-terminal", "--cache=yes", "--cache-pause-initial=no",
                                         "--keep-open=yes", f"--input-ipc-server={at}", str(path)])
        self.socket = socket.socket(socket.AF_UNIX)
        until("mpv's socket", lambda: at.exists() and self.socket.connect_ex(str(at)) == 0, 20)
        self.lines, self.events = self.socket.makefile("rw"), []
        self.tell("observe_property", 1, "paused-for-cache")
        threading.Thread(target=self.listen, daemon=True).start()

    def tell(self, *command):
        print(json.dumps({"command": command}), file=self.lines, flush=True)

    def listen(self):
        for line in self.socket.makefile("r"):
            event = json.loads(line)
            what = event.get("event")
            if event.get("name") == "paused-for-cache" and "data" in event:
                what = "starves" if event["data"] else "fed"
            if what in ("playback-restart", "starves", "fed"):
                self.events.append((time.perf_counter(), what))

    def play(self, seconds, percent=None):
        """Plays on, perhaps from another place. Seconds until it did with something to show, and how often it had nothing later."""
        asked = self.began if percent is None else time.perf_counter()
        if percent is not None:
            self.tell("seek", percent, "absolute-percent")
        until("mpv's picture", lambda: any(at > asked and what == "playback-restart" for at, what in self.events), 30)
        time.sleep(seconds)
        since = [(at - asked, what) for at, what in self.events if at > asked]
        # It shows what it has, and gathers for a moment if that is little.
        starved = [at for at, what in since if what == "starves"]
        fed = [at for at, what in since if what == "fed"]
        begun = max(at for at, what in since if what == "playback-restart" or (what == "fed" and any(s < min(at, 1) for s in starved)))
        if len(fed) < len(starved):
            raise Failed("mpv has nothing to show")
        return begun, sum(at >= 1 for at in starved)

    def close(self):
        self.tell("quit")
        self.process.wait(20)
        self.socket.close()


def film(scene, table, seconds=60):
    """A film of 20 MB/s is played from a magnet link, with seeks; the pictures are as they were made, so that decoding costs nothing."""
    folder = scene.folder / "film"
    folder.mkdir()
    path = folder / "film.mkv"
    run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"testsrc2=size=960x540:rate=26:duration={seconds}", "-c:v", "rawvideo", "-pix_fmt", "yuv420p", path])
    told = f"{path.stat().st_size / seconds / 1e6:.0f} MB/s for {seconds} s"

    def work():
        info = scene.contents.torrent(path)
        client, chiral = scene.client(Libtorrent), scene.chiral()
        there = path_of(chiral, link(info, client.seed(info, folder)))
        lab.listing(there)
        player = Player(scene.folder, there / path.name)
        try:
            (begun, starved), *after = [player.play(8)] + [player.play(5, percent) for percent in (50, 90, 10, 70)]
        finally:
            player.close()
        waits, starved = [begun for begun, _ in after], starved + sum(times for _, times in after)
        return [("begins to play after", *fast(begun, 1)),
                ("plays on after seeks", " ".join(f"{wait:.3f}" for wait in waits) + " s", "each ≤ 1 s", max(waits) <= 1),
                ("had nothing to show while it played", f"{starved} times", "never", starved == 0)]
    table.attempt("film", told, work)
