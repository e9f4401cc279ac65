"""What all lanes of scripts/bench measure with."""
import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/interop"))
import daemon

BIN = pathlib.Path(os.environ.get("BIN", ROOT / "target/release"))
os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
TOOL = BIN / "examples/lab"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
MIB = int(os.environ.get("MIB", "1024"))
SIZE = MIB << 20


def sh(*command, **options):
    """Runs a command that must succeed; gives what it prints."""
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def timed(work):
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def noise(path, size):
    """A file that nobody has seen before."""
    with open(path, "wb") as out:
        for at in range(0, size, 1 << 20):
            out.write(os.urandom(min(1 << 20, size - at)))


def read(path, chunk=1 << 20):
    """Reads a file to its end as `dd bs=1M of=/dev/null` does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, chunk):
            pass
    finally:
        os.close(fd)


def touch_page_cache(folder, size):
    """Makes the host give this machine the memory that the measured run will use as page cache."""
    path = folder / "touch"
    with open(path, "wb") as out:
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            out.write(block)
    path.unlink()


class Daemon(daemon.Daemon):
    """A daemon that is measured."""

    def __init__(self, lab, name, *args, private=True):
        super().__init__(lab / name, *args, private=private)

    def address(self):
        return self.json("id")["addresses"][0]

    def publish(self, source, name):
        shutil.copyfile(source, self.mount / "upload" / name)
        return self.cid(name)

    def cpu(self):
        """Processor seconds so far, user and system."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self):
        """Resident bytes: what it allocated and what is mapped of its binary."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
        return 0

    def forget(self):
        """Ends it and takes its folder away."""
        self.stop()
        shutil.rmtree(self.folder)

    def wait_for_peer(self):
        while not self.json("peers"):
            time.sleep(0.02)


@contextlib.contextmanager
def farther(address, delay_ms):
    """The same peer behind a proxy that adds so much delay each way; without delay itself."""
    if not delay_ms:
        yield address
        return
    _, ip4, host, tcp, port, p2p, peer = address.split("/")
    proxy = subprocess.Popen([str(TOOL), "proxy", f"{host}:{port}", str(delay_ms)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"/{ip4}/{host}/{tcp}/{proxy.stdout.readline().strip()}/{p2p}/{peer}"
    finally:
        proxy.kill()
        proxy.wait()


def table(title, rows):
    """Rows of (what, ours, the other's, ratio, number to reach)."""
    print(f"\n## {title}")
    print("| what | ours | compared | ratio | reach |")
    print("|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def times(values, others):
    """How many times as long the others take."""
    return f"{statistics.median(others) / statistics.median(values):.2f}"


def seconds(values):
    return f"{statistics.median(values):.3f} s"


def rate(values):
    return f"{SIZE / statistics.median(values) / 1e6:.0f} MB/s"
