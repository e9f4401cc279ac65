"""What all scenes work with: contents, daemons and clients that end with their scene, and the table of what was found."""
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

import daemon
import foreign
import libtorrent as lt
from daemon import Failed

MIB = int(os.environ.get("MIB", "1024"))

# Names that other programs have trouble with. One with a backslash is refused by chiral, which says so.
ODD = ["plain", "with a space", ".hidden", "..two dots", "ümläut und ß", "日本語", "emoji 🦀", "a'quote\"s", "%41+&=#?", "-dash", "x" * 200 + ".long",
       "e\u0301 decomposed", "a:b|c?d*e<f>", "CON", "same", "same prefix", "same prefix and more", "same.prefix"]
# libtorrent calls these otherwise on the disk: it takes them, and could not seed them.
ODDER = ["new\nline", "tab\t", "trailing. ", "y" * 255]


def sha256(path):
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noise(path, size, seed):
    source = random.Random(seed)
    with open(path, "wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(source.randbytes(min(1 << 20, size - at)))


def expect(what, got, wanted):
    if got != wanted:
        raise Failed(f"{what}: {got}, expected {wanted}")


class Contents:
    """Files that scenes give and take; made when they are first asked for."""

    def __init__(self, folder):
        self.folder, self.made = folder, {}

    def once(self, key, make):
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def file(self, name, mib, seed=5):
        """A file with its sha256."""
        def make():
            path = self.folder / name / f"{name}.bin"
            path.parent.mkdir()
            noise(path, int(mib * (1 << 20)), seed)
            return path, sha256(path)
        return self.once(name, make)

    def large(self):
        return self.file("large", MIB)

    def torrent(self, path, **options):
        files = foreign.ordered(path) if path.is_dir() else [""]
        return self.once((path, *sorted(options.items())), lambda: foreign.torrent_of(path, files, **options))

    def odd(self, more=False):
        """A tree of odd names; `more`: with those that libtorrent calls otherwise on the disk."""
        def make():
            sizes, tree = random.Random(5), self.folder / ("odder names" if more else "odd names")
            for number, name in enumerate(ODD + ODDER if more else ODD):
                directory = tree / name if number % 3 == 0 else tree
                directory.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(sizes.randbytes(sizes.choice([0, 1, 16_384, 70_000, 1_500_000])))
            (tree / "z last").write_bytes(b"not empty")
            return tree
        return self.once(("odd", more), make)


class Scene:
    """A folder, and what runs in it; all of it ends with the scene."""

    def __init__(self, folder, contents):
        self.folder, self.contents, self.running, self.count = folder, contents, [], 0

    def fresh(self, name):
        self.count += 1
        folder = self.folder / f"{name}-{self.count}"
        folder.mkdir()
        return folder

    def chiral(self, config="", *args):
        folder = self.fresh("chiral")
        (folder / "chiral.toml").write_text(f'[torrent]\nlisten = "127.0.0.1:0"\n{config}\n')
        return self.keep(daemon.Daemon(folder, "--config", folder / "chiral.toml", *args))

    def client(self, kind, *args):
        return self.keep(kind(self.fresh(kind.name), *args))

    def keep(self, one):
        self.running.append(one)
        return one

    def end(self, one):
        self.running.remove(one)
        one.stop() if isinstance(one, daemon.Daemon) else one.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in list(reversed(self.running)):
            try:
                self.end(one)
            except (Failed, OSError) as error:
                print(f"ending what ran: {error}", flush=True)
        # What was killed left its mount, which cannot be looked at any more.
        for line in open("/proc/self/mountinfo"):
            if line.split()[4].startswith(f"{self.folder}/"):
                subprocess.run(["fusermount3", "-uz", line.split()[4]], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Table:
    """What was found: scene, what, figure, what to reach, verdict."""

    def __init__(self):
        self.rows, self.failed = [], 0

    def add(self, scene, what, figure, reach="", good=True):
        verdict = "ok" if good else "FAILED"
        self.failed += not good
        self.rows.append((scene, what, figure, reach, verdict))
        print(f"{scene}: {what}: {figure} {f'({reach}) ' if reach else ''}{verdict}", flush=True)

    def attempt(self, scene, what, work):
        """Work that gives what is told of it; or (figure, reach, whether it was reached), or a list of such with their names."""
        try:
            told = work()
        except (Failed, OSError, RuntimeError, AssertionError) as error:
            return self.add(scene, what, f"{type(error).__name__}: {error}"[:400], good=False)
        if isinstance(told, list):
            for part, *rest in told:
                self.add(scene, f"{what}, {part}" if what else part, *rest)
        else:
            self.add(scene, what, *(told if isinstance(told, tuple) else (told,)))

    def show(self):
        print("\n| scene | what | figure | reach | verdict |\n|---|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in row) + " |")


def path_of(chiral, link):
    """The directory of a torrent in a mount."""
    return chiral.mount / link.replace("/", "%2F")


def timed(work):
    """Seconds that work takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def fast(seconds, most):
    return f"{seconds:.3f} s", f"≤ {most} s", seconds <= most


def rate(size, seconds, least=None):
    told = f"{size / seconds / 1e6:.0f} MB/s"
    return (told, f"≥ {least} MB/s", size / seconds >= least * 1e6) if least else (told,)


class Reading:
    """Reads a file from its first byte to its last; how long each part took."""

    def __init__(self, path, chunk=1 << 20):
        start = time.perf_counter()
        digest, self.size, self.longest = hashlib.sha256(), 0, 0.0
        with open(path, "rb", buffering=0) as file:
            part = file.read(1)
            self.first = time.perf_counter() - start
            while part:
                digest.update(part)
                self.size += len(part)
                asked = time.perf_counter()
                part = file.read(chunk)
                self.longest = max(self.longest, time.perf_counter() - asked)
        self.seconds, self.sha256 = time.perf_counter() - start, digest.hexdigest()


def listing(directory, patience=60):
    """The names in a directory once there are any, and how long that took."""
    start = time.perf_counter()

    def names():
        try:
            return os.listdir(directory)
        except OSError:
            return None
    return foreign.until("the listing", names, patience), time.perf_counter() - start


def work_folder():
    return pathlib.Path(tempfile.mkdtemp(prefix="chiral-torrent-", dir=os.environ.get("LAB")))


HYBRID, V1 = 0, lt.create_torrent.v1_only
