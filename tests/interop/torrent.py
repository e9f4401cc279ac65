"""libtorrent and chiral give each other torrents, in both directions, by magnet link and by `.torrent` file.

    torrent.py FOLDER [MEGABYTES]    FOLDER: an empty scratch folder; MEGABYTES: of the large file (200)

Every address is one of this machine. libtorrent also says what the info hash of each tree is.
"""
import hashlib
import json
import os
import pathlib
import random
import sys
import time
import warnings

import libtorrent as lt

import peers

# What 2.1 calls by other names, 2.0 has only by these.
warnings.simplefilter("ignore", DeprecationWarning)

PIECE = 1 << 20
# Names that other programs have trouble with. One with a backslash is refused by chiral, which says so.
ODD = ["plain", "with a space", ".hidden", "ümläut und ß", "日本語", "emoji 🦀", "a'quote\"s", "%41+&=#?", "-dash", "x" * 200 + ".long", "e\u0301 decomposed",
       "a:b|c?d*e<f>", "CON"]
# libtorrent calls these otherwise on the disk: it takes them, and could not seed them.
ODDER = ["new\nline", "tab\t", "trailing. "]


def session():
    """A client that talks to whom it is told and to nobody else. With uTP on it would dial that first, for seconds."""
    off = dict.fromkeys(["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_utp", "enable_outgoing_utp"], False)
    return lt.session({**off, "listen_interfaces": "127.0.0.1:0", "allow_multiple_connections_per_ip": True,
                       "alert_mask": lt.alert.category_t.storage_notification})


def torrent_of(path, files, piece=PIECE, flags=lt.create_torrent.v1_only):
    """The torrent of files in an order, as libtorrent makes it."""
    storage = lt.file_storage()
    for name in files:
        storage.add_file(str(pathlib.PurePath(path.name) / name) if name else path.name, (path / name if name else path).stat().st_size)
    made = lt.create_torrent(storage, piece, flags)
    lt.set_piece_hashes(made, str(path.parent))
    return lt.torrent_info(made.generate())


def ordered(folder):
    """Files below a folder as chiral orders them: by the bytes of their names, one directory after the other."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: [os.fsencode(part) for part in p.parts])


def add(client, params, seed=False):
    if seed:
        params.flags |= lt.torrent_flags.seed_mode
    params.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
    return client.add_torrent(params)


def seed(client, info, folder):
    params = lt.add_torrent_params()
    params.ti, params.save_path = info, str(folder)
    add(client, params, seed=True)
    return f"{lt.make_magnet_uri(info)}&x.pe=127.0.0.1:{client.listen_port()}"


def leech(client, params, folder, patience=120):
    """Fetches all of a torrent; seconds."""
    params.save_path = str(folder)
    start = time.monotonic()
    handle = add(client, params)
    while not handle.status().is_seeding:
        status = handle.status()
        if status.errc.value():
            raise peers.Failed(f"libtorrent: {status.errc.message()}")
        if time.monotonic() - start > patience:
            raise peers.Failed(f"libtorrent got {status.progress:.0%} in {patience} s")
        time.sleep(0.01)
    seconds = time.monotonic() - start
    flush(client, handle)
    return seconds


def flush(client, handle, patience=30):
    """A piece counts as here before it is written."""
    handle.flush_cache()
    end = time.monotonic() + patience
    while time.monotonic() < end:
        client.wait_for_alert(1000)
        if any(isinstance(alert, lt.cache_flushed_alert) for alert in client.pop_alerts()):
            return
    raise peers.Failed("libtorrent does not write what it has")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expect(what, got, wanted):
    if got != wanted:
        raise peers.Failed(f"{what}: {got}, expected {wanted}")


def same_files(info, folder, source):
    """By their numbers: libtorrent writes some names differently. A file that is the whole torrent has no path below it."""
    listed = ordered(source) if source.is_dir() else [None]
    for number, name in enumerate(listed):
        got = pathlib.Path(folder, info.files().file_path(number))
        expect(f"sha256 of {name}", sha256(got), sha256(source / name if name else source))


def contents(folder, megabytes):
    noise = random.Random(5)
    large = folder / "large.bin"
    with open(large, "wb") as file:
        for _ in range(megabytes):
            file.write(noise.randbytes(1 << 20))
    odd, odder = folder / "odd names", folder / "odder names"
    for tree, names in [(odd, ODD), (odder, ODD + ODDER)]:
        for number, name in enumerate(names):
            directory = tree / name if number % 3 == 0 else tree
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(noise.randbytes(noise.choice([0, 1, 16_384, 70_000, 1_500_000])))
        (tree / "z last").write_bytes(b"not empty")
    return large, odd, odder


class Scenes:
    def __init__(self, folder, megabytes):
        self.folder, self.failed = folder, 0
        (folder / "contents").mkdir()
        self.large, self.odd, self.odder = contents(folder / "contents", megabytes)

    def scene(self, name, work):
        try:
            told, verdict = work(), "ok"
        except (peers.Failed, OSError, RuntimeError) as error:
            self.failed += 1
            told, verdict = str(error)[:300], "FAILED"
        print(f"| {name:44} | {verdict:6} | {told} |", flush=True)

    def out(self):
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        return pathlib.Path(peers.run(["mktemp", "-d", "-p", out]))


def read_large(scenes, chiral, flags, megabytes):
    """libtorrent seeds, the mount reads from the first byte to the last."""
    client = session()
    info = torrent_of(scenes.large, [""], flags=flags)
    link = seed(client, info, scenes.large.parent)
    start = time.monotonic()
    files = os.listdir(chiral.mount / link.replace("/", "%2F"))
    expect("the listing", files, [scenes.large.name])
    listed = time.monotonic() - start
    with open(chiral.mount / str(info.info_hashes().v1) / files[0], "rb", buffering=0) as file:
        digest = hashlib.sha256(file.read(1))
        first = time.monotonic() - start - listed
        while part := file.read(1 << 20):
            digest.update(part)
    taken = time.monotonic() - start - listed
    expect("sha256", digest.hexdigest(), sha256(scenes.large))
    return f"listed {listed:.3f} s, first byte {first:.3f} s, {megabytes * 1.048576 / taken:.0f} MB/s"


def seek_large(scenes, chiral):
    """A seek to nine tenths while the front is on its way."""
    client = session()
    info = torrent_of(scenes.large, [""], piece=PIECE // 2)
    link = seed(client, info, scenes.large.parent)
    path = chiral.mount / link.replace("/", "%2F") / scenes.large.name
    os.listdir(path.parent)
    with open(path, "rb", buffering=0) as file, open(scenes.large, "rb") as source:
        file.read(1 << 20)
        at = scenes.large.stat().st_size * 9 // 10
        start = time.monotonic()
        file.seek(at)
        got = file.read(1 << 16)
        taken = time.monotonic() - start
        source.seek(at)
        expect("the bytes there", got, source.read(len(got)))
    return f"{taken:.3f} s"


def read_odd(scenes, chiral):
    """A torrent of libtorrent's, dropped into `torrents/`."""
    client = session()
    info = torrent_of(scenes.odd, ordered(scenes.odd))
    link = seed(client, info, scenes.odd.parent)
    # Who has it is said by the link: a description names no peers.
    chiral.cli("torrent", "add", link)
    (chiral.mount / "torrents" / "dropped.torrent").write_bytes(lt.bencode(lt.create_torrent(info).generate()))
    tree = chiral.mount / "torrents" / "odd names"
    expect("the link", os.readlink(tree), f"../{info.info_hashes().v1}")
    # A link at the end of a path would be compared as one.
    peers.same(scenes.odd, f"{tree}/.")
    chiral.cli("torrent", "remove", str(info.info_hashes().v1))
    return f"{len(ordered(scenes.odd))} files equal"


def give(scenes, chiral, content, by_link, megabytes):
    """chiral seeds, libtorrent fetches."""
    seeded = chiral.json("seed", content)
    text = pathlib.Path(seeded["torrent"]).read_bytes()
    info = lt.torrent_info(lt.bdecode(text))
    expect("the info hash that libtorrent reads", str(info.info_hashes().v1), seeded["infohash"])
    files = ordered(content) if content.is_dir() else [""]
    own = torrent_of(content, files, info.piece_length())
    expect("the info hash that libtorrent makes", str(own.info_hashes().v1), seeded["infohash"])
    if by_link:
        params = lt.parse_magnet_uri(seeded["magnet"])
    else:
        params = lt.add_torrent_params()
        params.ti = info
    params.peers = [("127.0.0.1", chiral.json("status")["torrent_port"])]
    client, out = session(), scenes.out()
    seconds = leech(client, params, out)
    same_files(info, out, content)
    size = info.total_size() / 1e6
    return f"{seconds:.2f} s, {size / seconds:.0f} MB/s" if size > megabytes else f"{len(files)} files, {seconds:.2f} s"


def pause(scenes, chiral):
    """Nobody gets anything of what is paused, until it goes on."""
    seeded = chiral.json("seed", scenes.odder)
    chiral.cli("torrent", "pause", seeded["infohash"])
    params = lt.parse_magnet_uri(seeded["magnet"])
    params.peers = [("127.0.0.1", chiral.json("status")["torrent_port"])]
    client = session()
    try:
        leech(client, params, scenes.out(), patience=3)
    except peers.Failed:
        pass
    else:
        raise peers.Failed("a paused torrent was given")
    chiral.cli("torrent", "resume", seeded["infohash"])
    params = lt.parse_magnet_uri(seeded["magnet"])
    params.peers = [("127.0.0.1", chiral.json("status")["torrent_port"])]
    leech(session(), params, scenes.out())
    return "nothing while it was, all of it then"


def main():
    folder, megabytes = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    scenes = Scenes(folder, megabytes)
    config = folder / "chiral.toml"
    config.write_text('[torrent]\nlisten = "127.0.0.1:0"\n')
    with peers.Lab(folder, {}) as lab:
        chiral = lab.start("chiral", ("tcp",), "--config", str(config))
        v1, hybrid = lt.create_torrent.v1_only, 0
        scenes.scene("libtorrent → chiral, magnet, large", lambda: read_large(scenes, chiral, v1, megabytes))
        scenes.scene("libtorrent → chiral, magnet, large, hybrid", lambda: read_large(scenes, chiral, hybrid, megabytes))
        scenes.scene("libtorrent → chiral, seek", lambda: seek_large(scenes, chiral))
        scenes.scene("libtorrent → chiral, dropped, odd names", lambda: read_odd(scenes, chiral))
        for content in (scenes.large, scenes.odder):
            for by_link in (True, False):
                form = "magnet" if by_link else ".torrent"
                scenes.scene(f"chiral → libtorrent, {form}, {content.name}", lambda: give(scenes, chiral, content, by_link, megabytes / 2))
        scenes.scene("chiral → libtorrent, paused and resumed", lambda: pause(scenes, chiral))
        print(json.dumps([{k: t[k] for k in ("name", "state", "sent", "seed")} for t in chiral.json("torrent", "list")]))
    if scenes.failed:
        sys.exit(f"torrent: {scenes.failed} scenes failed")
    print("torrent: every scene passed")


main()
