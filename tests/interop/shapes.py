"""What the foreign peers and chiral give each other: the content, and how its DAG is built."""
import os
import pathlib
import random

# Entries at which the directory of this naming is a sharded one.
SHARDED = 5200

# name: (content, how the DAG is built, foreign peers that can build it; None: all)
SHAPES = {
    "empty file": ("empty", {}, {"helia"}),  # Kubo and boxo never serve a block of no bytes
    "small file": ("small", {}, None),
    "one leaf": ("leaf", {}, None),
    "two leaves": ("leaves", {}, None),
    "file 5 MB": ("file", {}, None),
    "file 50 MB": ("large", {}, None),
    "CIDv0": ("file", {"cidv0": True}, None),
    "trickle": ("file", {"trickle": True}, None),
    "CIDv0 trickle": ("file", {"trickle": True, "cidv0": True}, None),
    "dag-pb leaves": ("file", {"pb_leaves": True}, None),
    "blocks 1 MiB": ("file", {"chunker": "size-1048576"}, None),
    "rabin": ("file", {"chunker": "rabin-65536-131072-262144"}, {"boxo", "kubo"}),
    "buzhash": ("file", {"chunker": "buzhash"}, {"boxo", "kubo"}),
    "sha2-512": ("file", {"hash": "sha2-512"}, {"boxo", "kubo"}),
    "sha3-256": ("file", {"hash": "sha3-256"}, {"boxo", "kubo"}),
    "blake2b-256": ("file", {"hash": "blake2b-256"}, {"boxo", "kubo"}),
    "blake3": ("file", {"hash": "blake3"}, {"boxo", "kubo"}),
    "inlined": ("tree", {"inline": 32}, {"boxo", "kubo"}),
    "mode and mtime": ("file", {"keep_stats": True}, {"boxo", "kubo"}),
    "tree": ("tree", {}, {"boxo", "kubo"}),
    "tree without links": ("plain tree", {}, None),
    "CIDv0 tree": ("plain tree", {"cidv0": True}, None),
    "sharded directory": ("sharded", {}, None),
}


SIZES = {"empty": 0, "small": 11, "leaf": 262144, "leaves": 262145, "file": 5_000_000, "large": 50_000_000}


def make(folder):
    """Writes the content of every shape, each of its own bytes: no shape finds its blocks there from another."""
    folder.mkdir()
    noise = random.Random(20)
    paths = {}
    for number, (name, (content, shape, _)) in enumerate(SHAPES.items()):
        path = paths[name] = folder / f"{number}-{content.replace(' ', '-')}"
        if content == "sharded":
            path.mkdir()
            for n in range(SHARDED):
                (path / f"file-{n:06}").write_text(f"{n}\n")
        elif content in SIZES:
            path.write_bytes(noise.randbytes(SIZES[content]))
        else:
            tree(path, noise, links=content == "tree")
        if shape.get("keep_stats"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
            path.chmod(0o640)
    return paths


def tree(root: pathlib.Path, noise, links):
    (root / "a" / "b").mkdir(parents=True)
    (root / "void").mkdir()
    (root / "a" / "b" / "deep").write_bytes(noise.randbytes(700_000))
    (root / "a" / "tiny").write_text("tiny")
    (root / "größe, 文件 & more").write_bytes(noise.randbytes(300_000))
    for n in range(20):
        (root / "a" / f"{n}").write_bytes(noise.randbytes(n * 100 + 1))
    if links:
        (root / "link").symlink_to("a/b/deep")
        (root / "dangling").symlink_to("../no where")
