"""A file from one HTTP gateway alone, through our mount."""
import collections
import contextlib
import os
import socket
import statistics
import threading

import kubo
from common import MIB, ROUNDS, SIZE, Daemon, noise, rate, read, sh, table, timed, times, touch_page_cache


def forward(source, target, seen=None):
    while piece := source.recv(1 << 20):
        if seen is not None:
            # A request has no body, and each comes in one piece.
            seen.update(form for form in ("car", "raw") if f"format={form}".encode() in piece)
        target.sendall(piece)
    target.shutdown(socket.SHUT_WR)


def counted(url):
    """The same gateway at another URL, and how often it is asked for archives and for single blocks there."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    seen = collections.Counter()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            with contextlib.suppress(OSError):
                near, far = listener.accept()[0], socket.create_connection((host, int(port)))
                threading.Thread(target=forward, args=(near, far, seen), daemon=True).start()
                threading.Thread(target=forward, args=(far, near), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", seen


class Reader:
    """A daemon that knows nobody but one gateway."""

    def __init__(self, lab, url):
        self.daemon = Daemon(lab, "reader", "--gateway", url)

    def __enter__(self):
        return self.daemon

    def __exit__(self, *failed):
        if not any(failed):
            assert not self.daemon.json("peers"), "it has peers"
            self.daemon.forget()


def whole(lab, url, cid, expected):
    """Seconds of a read of all of it, and the processor seconds of the reader."""
    with Reader(lab, url) as reader:
        before = reader.cpu()
        spent = timed(lambda: read(reader.mount / cid))
        used = reader.cpu() - before
        assert sh("sha256sum", reader.mount / cid).split()[0] == expected, "wrong bytes"
    return spent, used


def first_bytes(lab, url, cid):
    """Seconds to the first byte, open included, and of a read at nine tenths of the file after it."""
    with Reader(lab, url) as reader:
        opened = []
        first = timed(lambda: (opened.append(os.open(reader.mount / cid, os.O_RDONLY)), os.read(opened[0], 1)))
        seek = timed(lambda: os.pread(opened[0], 1, SIZE // 10 * 9))
        os.close(opened[0])
    return first, seek


def requests(lab, url, cid, expected):
    """What a read of all of it asks for. Counting costs time: this read is not measured."""
    relay, seen = counted(url)
    whole(lab, relay, cid, expected)
    assert seen["car"], "no windows were asked for"
    return f"{seen['car']} + {seen['raw']}"


def measure(lab, publisher, urls, cid, expected):
    spent = {who: [] for who in urls}
    latencies = {who: [] for who in urls}
    reading, serving = [], []
    for _ in range(ROUNDS):
        for who, url in urls.items():
            touch_page_cache(lab, SIZE * 2)
            before = publisher.cpu()
            seconds, used = whole(lab, url, cid, expected)
            spent[who].append(seconds)
            if who == "ours":
                reading.append(used / SIZE * 1e9)
                serving.append((publisher.cpu() - before) / SIZE * 1e9)
            latencies[who].append(first_bytes(lab, url, cid))
    asked = {who: requests(lab, url, cid, expected) for who, url in urls.items()}

    def milliseconds(who, column):
        return f"{statistics.median(pair[column] for pair in latencies[who]) * 1e3:.1f} ms" if who in urls else ""

    beside = "kubo" in urls
    table(f"gateway: {MIB} MiB through our mount from one gateway alone; from ours, and compared from Kubo's", [
        ("all of it, to disk, verified", rate(spent["ours"]), rate(spent["kubo"]) if beside else "",
         times(spent["ours"], spent["kubo"]) if beside else "", "≥ 300 MB/s"),
        # Holds also on a loaded machine, where the rates say little.
        ("processor seconds per GB, reader + gateway", f"{statistics.median(reading):.2f} + {statistics.median(serving):.2f}", "", "", ""),
        ("open and first byte", milliseconds("ours", 0), milliseconds("kubo", 0), "", "≤ 50 ms"),
        ("then a byte at 90 %", milliseconds("ours", 1), milliseconds("kubo", 1), "", ""),
        ("requests for all of it: windows + single blocks", asked["ours"], asked.get("kubo", ""), "", "windows")])


def gateway(lab):
    source = lab / "source"
    noise(source, SIZE)
    publisher = Daemon(lab, "publisher")
    cid = publisher.publish(source, "file")
    expected = sh("sha256sum", source).split()[0]
    urls = {"ours": publisher.json("status")["gateway"]}
    with contextlib.ExitStack() as stack:
        if not kubo.missing("gateway"):
            other = stack.enter_context(kubo.node(lab, "kubo"))
            assert other.add(source, {}) == cid, "the ids differ"
            urls["kubo"] = other.gateway
        measure(lab, publisher, urls, cid, expected)
    publisher.stop()
