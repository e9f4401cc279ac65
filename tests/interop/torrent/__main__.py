"""Torrents between chiral and foreign clients, in both directions.

    torrent [SCENE…]    all without arguments; MIB (1024) is the size of the large file, LAB a folder to work in

Every address is one of this machine.
"""
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import exchange
import lab
import reading
import sources

SCENES = {"read": exchange.give, "give": exchange.take, "dropped": exchange.dropped, "paused": exchange.paused, "seek": reading.seek,
          "files": reading.files, "torrents": reading.torrents, "film": reading.film, "sources": sources.several, "resume": sources.resume,
          "cid": sources.by_cid}


def main():
    wanted = sys.argv[1:] or list(SCENES)
    if unknown := [name for name in wanted if name not in SCENES]:
        sys.exit(f"torrent: no scene {', '.join(unknown)}; there are {', '.join(SCENES)}")
    folder, table = lab.work_folder(), lab.Table()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {lab.MIB} MiB; MB = 10^6 bytes", flush=True)
    try:
        (folder / "contents").mkdir()
        contents = lab.Contents(folder / "contents")
        for name in wanted:
            (folder / name).mkdir()
            with lab.Scene(folder / name, contents) as scene:
                table.attempt(name, "", lambda: SCENES[name](scene, table) or [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table.show()
    if table.failed:
        sys.exit(f"torrent: {table.failed} of {len(table.rows)} failed")
    print(f"torrent: all {len(table.rows)} passed")


main()
