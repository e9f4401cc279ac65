"""Each client gives chiral a torrent through its mount, and fetches from it what it seeds."""
import os
import pathlib
import time

import lab
import libtorrent as lt
from daemon import Failed, run
from foreign import Btfs, Libtorrent, Qbittorrent, Transmission, hash_of, link, ordered, text_of, until
from lab import HYBRID, V1, MIB, expect, fast, path_of, rate, sha256

# transmission sends to a peer twice a second, and to a new one after ten: nothing of its speed is chiral's.
GIVERS = [("libtorrent, v1", Libtorrent, V1, 200), ("libtorrent, hybrid", Libtorrent, HYBRID, 200), ("qbittorrent", Qbittorrent, V1, 200),
          ("transmission", Transmission, V1, None)]


def read_from(scene, kind, flags, least):
    """Reads the large file from its first byte to its last by a magnet link while a client seeds it."""
    large, digest = scene.contents.large() if least else scene.contents.file("small", 32)
    info = scene.contents.torrent(large, flags=flags)
    client, chiral = scene.client(kind), scene.chiral()
    named = link(info, client.seed(info, large.parent))
    names, listed = lab.listing(path_of(chiral, named))
    expect("the listing", names, [large.name])
    read = lab.Reading(chiral.mount / hash_of(info) / large.name)
    expect("sha256", read.sha256, digest)
    first = fast(read.first, 0.3) if least else (f"{read.first:.3f} s",)
    rows = [("listed after", f"{listed:.3f} s"), ("first byte", *first), (f"{read.size >> 20} MiB", *rate(read.size, read.seconds, least)),
            ("longest read", f"{read.longest:.3f} s")]
    for one in (chiral, client):
        scene.end(one)
    return rows


def alone():
    """Whether this machine has no network but its own: btfs asks the public DHT, which cannot be switched off."""
    return {line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]} == {"lo"}


def read_btfs(scene):
    """The same from the same kind of seed through btfs."""
    large, digest = scene.contents.large()
    info = scene.contents.torrent(large, flags=V1)
    client = scene.client(Libtorrent)
    client.seed(info, large.parent)
    btfs = scene.client(Btfs, link(info))

    def names():
        client.handles[0].connect_peer(("127.0.0.1", btfs.port))
        return os.listdir(btfs.mount)
    listed, names = lab.timed(lambda: until("btfs' listing", names, 60, 0.1))
    read = lab.Reading(btfs.mount / names[0])
    expect("sha256", read.sha256, digest)
    scene.end(btfs)
    return [("listed after", f"{listed:.3f} s"), ("first byte", f"{read.first:.3f} s"), (f"{MIB} MiB", *rate(read.size, read.seconds)),
            ("longest read", f"{read.longest:.3f} s")]


def give(scene, table):
    """chiral streams what each client seeds."""
    for name, kind, flags, least in GIVERS:
        table.attempt("read", name, lambda: read_from(scene, kind, flags, least))
    if alone():
        table.attempt("read", "beside it btfs, libtorrent, v1", lambda: read_btfs(scene))
    else:
        print("read: btfs is not measured beside chiral: it would ask others, and only root can take the network away", flush=True)


def same_files(info, folder, source):
    """By their numbers: libtorrent writes some names otherwise. A file that is the whole torrent has no path below it."""
    for number, name in enumerate(ordered(source) if source.is_dir() else [None]):
        got = pathlib.Path(folder, info.files().file_path(number))
        expect(f"sha256 of {name}", sha256(got), sha256(source / name if name else source))


def same_bytes(folder, source):
    """Whatever the names are that transmission gives; it makes no empty files."""
    def all_of(path):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
        return sorted(sha256(file) for file in files)
    expect("what came", all_of(folder), all_of(source))


def fetch(scene, chiral, client, content, by_link):
    """A client fetches what chiral seeds; the info hash is the one that libtorrent computes."""
    seeded = chiral.json("seed", content)
    text = pathlib.Path(seeded["torrent"]).read_bytes()
    info = lt.torrent_info(lt.bdecode(text))
    own = scene.contents.torrent(content, piece=info.piece_length())
    expect("the info hash that libtorrent reads", hash_of(info), seeded["infohash"])
    expect("the info hash that libtorrent makes", hash_of(own), seeded["infohash"])
    source, out = seeded["magnet"] if by_link else text, scene.fresh("out")
    if isinstance(client, Transmission):
        seconds = be_dialled(chiral, client, source, out, seeded["infohash"])
    else:
        seconds = client.fetch(source, out, chiral.json("status")["torrent_port"])
    if isinstance(client, Transmission):
        same_bytes(out, content)
    else:
        same_files(info, out, content)
    run(["rm", "-rf", out])
    size, files = info.total_size(), info.num_files()
    return f"{seconds:.2f} s, {size / seconds / 1e6:.0f} MB/s" if files == 1 else f"{files} files, {seconds:.2f} s"


def be_dialled(chiral, client, source, out, infohash):
    """chiral dials whom its configuration names when a torrent begins to go; one who hangs up then is dialled no more by who has all.
    transmission does while it looks at what is there, and once it has the description."""
    client.want(source, out)

    def complete():
        if client.has_all(infohash):
            return True
        if not client.has_peers(infohash):
            chiral.cli("torrent", "pause", infohash)
            chiral.cli("torrent", "resume", infohash)
            time.sleep(1)
        return False
    seconds, _ = lab.timed(lambda: until("transmission's download", complete, every=0.05))
    return seconds


def take(scene, table):
    """Each client fetches what chiral seeds, by its link and by its description."""
    transmission = scene.client(Transmission)
    chiral = scene.chiral(f'peers = ["127.0.0.1:{transmission.port}"]')
    for kind in (Libtorrent, Qbittorrent, Transmission):
        one, _ = scene.contents.large() if kind is not Transmission else scene.contents.file("small", 32)
        # transmission puts something behind the names of files that are not whole, so that the longest cannot be had.
        odd = scene.contents.odd(more=kind is not Transmission)
        for what, content, by_link in [(f"{one.stat().st_size >> 20} MiB", one, True), ("odd names", odd, True), ("odd names", odd, False)]:
            # Each has it for the first time.
            client = transmission if kind is Transmission else scene.client(kind)
            name = f"{kind.name}, {what}, {'magnet' if by_link else '.torrent'}"
            table.attempt("give", name, lambda: fetch(scene, chiral, client, content, by_link))
            if kind is Transmission:
                transmission.tell("-t", "all", "-r", check=False)
            else:
                scene.end(client)


def dropped(scene, table):
    """A description is dropped into `torrents/` while its link is looked for; odd names come through the mount."""
    tree = scene.contents.odd()
    info, chiral, client = scene.contents.torrent(tree), scene.chiral(), scene.client(Libtorrent)
    named = link(info, client.seed(info, tree.parent))

    def work():
        # Who has it is said by the link: a description names no peers.
        chiral.cli("torrent", "add", named)
        (chiral.mount / "torrents" / "dropped.torrent").write_bytes(text_of(info))
        there = chiral.mount / "torrents" / tree.name
        expect("the link", os.readlink(there), f"../{hash_of(info)}")
        # A link at the end of a path would be compared as one.
        run(["diff", "-r", "--no-dereference", tree, f"{there}/."])
        chiral.cli("torrent", "remove", hash_of(info))
        return f"{len(ordered(tree))} files equal"
    for n in range(5):
        table.attempt("dropped", f"round {n + 1}", work)


def paused(scene, table):
    """Nobody gets anything of what is paused, until it goes on."""
    chiral, tree = scene.chiral(), scene.contents.odd(more=True)

    def work():
        seeded = chiral.json("seed", tree)
        chiral.cli("torrent", "pause", seeded["infohash"])
        port = chiral.json("status")["torrent_port"]
        try:
            scene.client(Libtorrent).fetch(seeded["magnet"], scene.fresh("out"), port, patience=3)
        except Failed:
            pass
        else:
            raise Failed("a paused torrent was given")
        chiral.cli("torrent", "resume", seeded["infohash"])
        scene.client(Libtorrent).fetch(seeded["magnet"], scene.fresh("out"), port)
        return "nothing while it was, all of it then"
    table.attempt("paused", "", work)
