"""Foreign BitTorrent clients behind one set of methods, on addresses of this machine alone.

Each can `seed` a torrent whose files it has, and `fetch` one from a peer. libtorrent also says what the info hash of a tree is.
"""
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
import warnings

import libtorrent as lt

from daemon import Failed, run

# What 2.1 calls by other names, 2.0 has only by these.
warnings.simplefilter("ignore", DeprecationWarning)

PIECE = 1 << 20
PATIENCE = 180


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, done, patience=PATIENCE, every=0.01):
    """Waits until `done` gives something; gives that."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(every)
    raise Failed(f"{what} did not happen in {patience} s")


def torrent_of(path, files, piece=PIECE, flags=lt.create_torrent.v1_only, webseeds=()):
    """The torrent of files in an order, as libtorrent makes it."""
    storage = lt.file_storage()
    for name in files:
        storage.add_file(str(pathlib.PurePath(path.name) / name) if name else path.name, (path / name if name else path).stat().st_size)
    made = lt.create_torrent(storage, piece, flags)
    lt.set_piece_hashes(made, str(path.parent))
    for url in webseeds:
        made.add_url_seed(url)
    return lt.torrent_info(made.generate())


def ordered(folder):
    """Files below a folder as chiral orders them: by the bytes of their names, one directory after the other."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: [os.fsencode(part) for part in p.parts])


def text_of(info):
    return lt.bencode(lt.create_torrent(info).generate())


def hash_of(info):
    return str(info.info_hashes().v1)


def link(info, *ports):
    """A magnet link that names peers of this machine."""
    return lt.make_magnet_uri(info) + "".join(f"&x.pe=127.0.0.1:{port}" for port in ports)


class Libtorrent:
    """A client that talks to whom it is told and to nobody else. With uTP on it would dial that first, for seconds."""
    name = "libtorrent"

    def __init__(self, _folder=None):
        off = dict.fromkeys(["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_utp", "enable_outgoing_utp"], False)
        self.session = lt.session({**off, "listen_interfaces": "127.0.0.1:0", "allow_multiple_connections_per_ip": True,
                                   "active_seeds": -1, "active_limit": -1, "connections_limit": 2000, "alert_mask": lt.alert.category_t.storage_notification})
        self.port = self.session.listen_port()
        self.handles = []

    def add(self, params, folder):
        params.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
        params.save_path = str(folder)
        self.handles.append(self.session.add_torrent(params))
        return self.handles[-1]

    def seed(self, info, folder, rate=None):
        """Gives what is in a folder, to each torrent's peers together at most `rate` bytes per second."""
        params = lt.add_torrent_params()
        params.ti = info
        params.flags |= lt.torrent_flags.seed_mode
        if rate:
            params.upload_limit = rate
        self.add(params, folder)
        return self.port

    def fetch(self, source, folder, port, patience=PATIENCE):
        """Fetches all of a torrent, given by its link or its text; seconds."""
        if isinstance(source, str):
            params = lt.parse_magnet_uri(source)
        else:
            params = lt.add_torrent_params()
            params.ti = lt.torrent_info(lt.bdecode(source))
        params.peers = [("127.0.0.1", port)]
        start = time.monotonic()
        handle = self.add(params, folder)

        def complete():
            status = handle.status()
            if status.errc.value():
                raise Failed(f"libtorrent: {status.errc.message()}")
            return status.is_seeding
        until("libtorrent's download", complete, patience)
        seconds = time.monotonic() - start
        self.flush(handle)
        return seconds

    def flush(self, handle):
        """A piece counts as here before it is written."""
        handle.flush_cache()

        def flushed():
            self.session.wait_for_alert(1000)
            return any(isinstance(alert, lt.cache_flushed_alert) for alert in self.session.pop_alerts())
        until("libtorrent's writing", flushed, 30)

    def close(self):
        # The session's end waits for its disk and its connections.
        self.session.pause()
        del self.session, self.handles


class Program:
    """A client in a process of its own."""

    def __init__(self, folder, command, **options):
        self.folder = pathlib.Path(folder)
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, **options)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Qbittorrent(Program):
    name = "qbittorrent-nox"
    CONFIG = """[LegalNotice]
Accepted=true
[Preferences]
WebUI\\Address=127.0.0.1
WebUI\\Port={web}
WebUI\\LocalHostAuth=false
WebUI\\CSRFProtection=false
[BitTorrent]
Session\\DHTEnabled=false
Session\\LSDEnabled=false
Session\\PeXEnabled=false
Session\\BTProtocol=TCP
Session\\Port={port}
Session\\InterfaceAddress=127.0.0.1
Session\\DefaultSavePath={folder}
Session\\QueueingSystemEnabled=false
"""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        config = folder / "qBittorrent/config"
        config.mkdir(parents=True)
        self.port, self.web = free_port(), free_port()
        (config / "qBittorrent.conf").write_text(self.CONFIG.format(web=self.web, port=self.port, folder=folder))
        super().__init__(folder, ["qbittorrent-nox", f"--profile={folder}"])
        until("qbittorrent's start", self.answers, 60, 0.1)

    def answers(self):
        try:
            return self.ask("app/version")
        except OSError:
            return None

    def ask(self, what, **fields):
        """A request with a form; a value of bytes is a file."""
        url, mark = f"http://127.0.0.1:{self.web}/api/v2/{what}", uuid.uuid4().hex
        if not fields:
            return urllib.request.urlopen(url, timeout=20).read()
        body = b""
        for key, value in fields.items():
            file = '; filename="x.torrent"\r\nContent-Type: application/x-bittorrent' if isinstance(value, bytes) else ""
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{key}"{file}\r\n\r\n'
            body += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        return urllib.request.urlopen(urllib.request.Request(url, body + f"--{mark}--\r\n".encode(), headers), timeout=20).read()

    def has_all(self, infohash):
        about = json.loads(self.ask(f"torrents/info?hashes={infohash}"))
        if about and about[0]["state"] in ("error", "missingFiles"):
            raise Failed(f"qbittorrent: {about[0]['state']}")
        return about and about[0]["progress"] == 1 and about[0]["state"] in ("uploading", "stalledUP", "forcedUP")

    def seed(self, info, folder):
        self.ask("torrents/add", torrents=text_of(info), savepath=str(folder), skip_checking="true")
        until("qbittorrent's start of seeding", lambda: self.has_all(hash_of(info)), every=0.1)
        return self.port

    def fetch(self, source, folder, port):
        form = {"urls": source} if isinstance(source, str) else {"torrents": source}
        infohash = str(lt.parse_magnet_uri(source).info_hashes.v1) if isinstance(source, str) else hash_of(lt.torrent_info(lt.bdecode(source)))
        start = time.monotonic()
        self.ask("torrents/add", savepath=str(folder), **form)
        until("qbittorrent's start", lambda: json.loads(self.ask(f"torrents/info?hashes={infohash}")), 30)
        peers = urllib.parse.urlencode({"hashes": infohash, "peers": f"127.0.0.1:{port}"}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.web}/api/v2/torrents/addPeers", peers, timeout=20).read()
        until("qbittorrent's download", lambda: self.has_all(infohash), every=0.05)
        return time.monotonic() - start


class Transmission(Program):
    """Dials nobody on 127.0.0.1: it is to be dialled, in both directions."""
    name = "transmission"

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.rpc = free_port(), free_port()
        off = dict.fromkeys(["dht-enabled", "lpd-enabled", "pex-enabled", "utp-enabled", "port-forwarding-enabled", "incomplete-dir-enabled"], False)
        settings = {**off, "bind-address-ipv4": "127.0.0.1", "peer-port": self.port, "rpc-port": self.rpc, "rpc-bind-address": "127.0.0.1",
                    "download-dir": str(folder), "rpc-authentication-required": False}
        (folder / "settings.json").write_text(json.dumps(settings))
        super().__init__(folder, ["transmission-daemon", "-f", "-g", folder])
        until("transmission's start", lambda: self.tell("-si", check=False), 60, 0.1)

    def tell(self, *args, check=True):
        done = subprocess.run(["transmission-remote", f"127.0.0.1:{self.rpc}", *map(str, args)], capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise Failed(f"transmission: {done.stderr or done.stdout}")
        return done.stdout if done.returncode == 0 else None

    def has_all(self, infohash):
        told = self.tell("-t", infohash, "-i")
        if "Error:" in told:
            raise Failed(f"transmission: {told[told.index('Error:'):][:200]}")
        return "Percent Done: 100%" in told and "State: Verifying" not in told and "State: Will Verify" not in told

    def seed(self, info, folder):
        path = self.folder / f"{hash_of(info)}.given"
        path.write_bytes(text_of(info))
        self.tell("-w", folder, "-a", path)
        until("transmission's look at the files", lambda: self.has_all(hash_of(info)), every=0.2)
        return self.port

    def want(self, source, folder):
        """Begins to fetch from whoever comes."""
        path = source
        if not isinstance(source, str):
            path = self.folder / "wanted.torrent"
            path.write_bytes(source)
        self.tell("-w", folder, "-a", path)

    def has_peers(self, infohash):
        return "Peers: connected to 0" not in self.tell("-t", infohash, "-i")


class Btfs(Program):
    """The mount that chiral is measured beside. It does not dial whom a link names: the seed dials it."""
    name = "btfs"

    def __init__(self, folder, source):
        folder, self.port = pathlib.Path(folder), free_port()
        self.mount = folder / "mnt"
        self.mount.mkdir(parents=True)
        super().__init__(folder, ["btfs", "-f", f"--data-directory={folder}/data", f"--min-port={self.port}", f"--max-port={self.port}", source, self.mount],
                         env={**os.environ, "HOME": str(folder)})
        until("btfs' mount", lambda: os.path.ismount(self.mount), 20)

    def close(self):
        if os.path.ismount(self.mount):
            run(["fusermount3", "-uz", self.mount])
        super().close()
