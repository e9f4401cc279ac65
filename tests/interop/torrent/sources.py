"""Where the bytes come from besides one swarm: several kinds of sources at once, the disk after a kill, and the way out by a CID."""
import contextlib
import http.server
import os
import pathlib
import re
import socket
import socketserver
import threading
import time
import urllib.parse

import lab
import libtorrent as lt
import peers
from daemon import run
from foreign import Libtorrent, hash_of, link, until
from lab import MIB, expect, path_of, rate, sha256

CAP = 20_000_000
CHUNK = 1 << 18


class Webseed:
    """A server of one file that gives all who ask together at most so many bytes per second."""

    def __init__(self, path, cap):
        self.path, self.lock, self.next, self.given = path, threading.Lock(), time.monotonic(), 0
        seed = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                size = path.stat().st_size
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                start, end = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(end + 1 - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
                self.end_headers()
                with open(path, "rb") as file:
                    file.seek(start)
                    while start <= end:
                        part = file.read(min(CHUNK, end + 1 - start))
                        seed.pace(len(part), cap)
                        self.wfile.write(part)
                        start += len(part)

            def log_message(self, *_):
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            open = set()

            def process_request(self, request, client_address):
                self.open.add(request)
                super().process_request(request, client_address)

            def handle_error(self, *_):
                pass
        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{urllib.parse.quote(path.name)}"

    def pace(self, size, cap):
        with self.lock:
            self.given += size
            self.next = max(self.next, time.monotonic() - 0.05) + size / cap
            wait = self.next - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for request in list(self.server.open):
            # Those whose other end is gone already are no sockets any more.
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


def three(scene, content):
    """A swarm of libtorrent, a chiral peer and a server, each capped; with the link that names all of them."""
    giver = scene.chiral()
    seeded = giver.json("seed", content)
    giver.cli("torrent", "limit", "--upload", f"{CAP} B")
    info = lt.torrent_info(lt.bdecode(pathlib.Path(seeded["torrent"]).read_bytes()))
    swarm = scene.client(Libtorrent)
    port = swarm.seed(info, content.parent, CAP)
    server = scene.keep(Webseed(content, CAP))
    named = link(info, port, giver.json("status")["torrent_port"]) + "&ws=" + urllib.parse.quote(server.url, safe="")
    return {"swarm": swarm, "chiral peer": giver, "server": server}, named


def read_three(scene, content, digest, ended):
    """Reads through the mount from all three, of which one ends on the way."""
    sources, named = three(scene, content)
    reader = scene.chiral()
    there = path_of(reader, named)
    names, _ = lab.listing(there)
    if ended:
        def end():
            time.sleep(1.5)
            scene.end(sources[ended])
        ending = threading.Thread(target=end)
        ending.start()
    read = lab.Reading(there / names[0])
    if ended:
        ending.join()
    expect("sha256", read.sha256, digest)
    if not ended:
        # What the daemons tell of themselves is a second old.
        time.sleep(1.5)
        given = [sources["swarm"].handles[0].status().total_payload_upload, sources["chiral peer"].json("torrent", "list")[0]["sent"], sources["server"].given]
    for one in [reader] + [source for name, source in sources.items() if name != ended]:
        scene.end(one)
    if ended:
        return f"{read.size / read.seconds / 1e6:.0f} MB/s, longest read {read.longest:.2f} s, sha256 equal"
    return [("all", *rate(read.size, read.seconds, 3 * CAP * 0.9 / 1e6)), ("of it by each", ", ".join(f"{part / read.size:.0%}" for part in given)), ("longest read", f"{read.longest:.2f} s")]


def several(scene, table):
    """A file comes from a swarm, a chiral peer and a server at once, and from two of them when the third ends."""
    content, digest = scene.contents.file("shared", min(MIB, 512))
    for ended in (None, "swarm", "chiral peer", "server"):
        name = f"the {ended} ends on the way" if ended else "swarm, chiral peer and server, 20 MB/s each"
        table.attempt("sources", name, lambda: read_three(scene, content, digest, ended))


def bytes_read(daemon):
    """Bytes that a daemon has read of files; what comes over the network does not count."""
    fields = dict(line.split(": ") for line in open(f"/proc/{daemon.process.pid}/io"))
    return int(fields["rchar"])


def resume(scene, table):
    """A daemon is killed in the middle of a torrent, and goes on with what it had."""
    speed = 50_000_000

    def work():
        large, digest = scene.contents.large()
        info, client, chiral = scene.contents.torrent(large), scene.client(Libtorrent), scene.chiral()
        named = link(info, client.seed(info, large.parent, speed))
        lab.listing(path_of(chiral, named))
        size = large.stat().st_size
        file, read = os.open(path_of(chiral, named) / large.name, os.O_RDONLY), 0
        while read < size // 2:
            read += len(os.read(file, 1 << 20))
        had = chiral.json("torrent", "list")[0]["bytes"]
        chiral.process.kill()
        chiral.process.wait()
        with contextlib.suppress(OSError):
            os.close(file)
        chiral.start()
        # What is believed to be here before anybody has looked at a file.
        believed, before = chiral.json("torrent", "list")[0]["bytes"], bytes_read(chiral)
        there = path_of(chiral, named) / large.name
        with open(there, "rb", buffering=0) as file:
            file.seek(size - 1)
            file.read(1)
        looked = bytes_read(chiral) - before
        expect("sha256", lab.Reading(there).sha256, digest)
        again = chiral.json("torrent", "list")[0]["received"] - (size - had)
        return [("here when it was killed", f"{had / 1e6:.0f} MB"), ("believed after the restart", f"{believed / 1e6:.0f} MB"),
                # librqbit looks at a few pieces for a sample.
                ("read of the disk until the first new byte", f"{looked / 1e6:.1f} MB", "≤ 16 MB", looked <= 16e6),
                # It is noted every two seconds what is here.
                ("fetched again", f"{again / 1e6:.1f} MB", "≤ 3 s of the rate", again <= 3 * speed)]
    table.attempt("resume", f"killed at half of {MIB} MiB", work)


def by_cid(scene, table):
    """What came by a torrent is read by its CID by others."""
    content, digest = scene.contents.file("shared", min(MIB, 512))
    info, client, chiral = scene.contents.torrent(content), scene.client(Libtorrent), scene.chiral()
    there = path_of(chiral, link(info, client.seed(info, content.parent))) / content.name
    lab.listing(there.parent)
    expect("sha256", lab.Reading(there).sha256, digest)
    scene.end(client)
    cid = chiral.cli("add", "--only-hash", "-Q", content)
    # It is hashed once it is whole, and served from then on.
    until("its place among contents", lambda: chiral.json("status")["store"]["objects"], 120, 0.1)
    addresses = chiral.json("id")["addresses"]

    def second():
        other = scene.chiral("", *[arg for address in addresses for arg in ("--peer", address)])
        until("the connection", lambda: other.json("peers"), 60, 0.05)
        read = lab.Reading(other.mount / cid)
        expect("sha256", read.sha256, digest)
        return rate(read.size, read.seconds)

    def kubo():
        node = scene.keep(peers.Kubo(os.environ["KUBO"], scene.fresh("kubo"), [peers.LISTEN["tcp"]]))
        node.connect(next(address for address in addresses if "/tcp/" in address))
        out = scene.folder / "by kubo"
        seconds, _ = lab.timed(lambda: run([node.program, "get", "-o", out, cid], node.env))
        expect("sha256", sha256(out), digest)
        return rate(out.stat().st_size, seconds)
    table.attempt("cid", f"a second daemon reads {cid[:12]}…", second)
    if "KUBO" in os.environ:
        table.attempt("cid", "Kubo gets it", kubo)
    else:
        print("cid: Kubo is left out, KUBO=/path/to/ipfs is missing", flush=True)

