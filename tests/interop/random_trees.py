"""Makes random files and trees: random_trees.py FOLDER COUNT SEED. The same seed gives the same bytes."""
import os
import random
import sys

CHUNK = 256 << 10
# Sizes around every border: empty, one byte, a leaf, a full node of 174 leaves, and one beyond each.
BORDERS = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 173 * CHUNK, 174 * CHUNK, 174 * CHUNK + 1, 175 * CHUNK]
NAMES = "abcdefghijklmnopqrstuvwxyzäöüßéλ漢字😀 ._-+'\"\\()[]{}$&;#~%"


def size(rng):
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(BORDERS)
    if kind < 0.6:
        return rng.randrange(0, 5000)
    return rng.randrange(0, 4 * CHUNK)


def name(rng, taken):
    while True:
        text = "".join(rng.choice(NAMES) for _ in range(rng.randrange(1, 40)))
        if text not in taken and text not in (".", "..") and not text.startswith("-"):
            taken.add(text)
            return text


def file(path, rng, length):
    with open(path, "wb") as out:
        if rng.random() < 0.2:
            out.truncate(length)  # zeros: the same leaf many times
        else:
            out.write(rng.randbytes(length))


def tree(path, rng, depth):
    os.mkdir(path)
    taken = set()
    # One in twenty is wide enough to be spread over a HAMT.
    wide = rng.random() < 0.05
    for _ in range(rng.randrange(4000, 7000) if wide else rng.randrange(0, 12)):
        child = os.path.join(path, name(rng, taken))
        kind = rng.random()
        if kind < 0.15 and depth > 0 and not wide:
            tree(child, rng, depth - 1)
        elif kind < 0.25:
            os.symlink(rng.choice(["target", "../up", "/absolute/path", "ä/ö"]), child)
        else:
            file(child, rng, rng.randrange(0, 100) if wide else size(rng))


def main():
    folder, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for n in range(count):
        rng = random.Random(seed * 1_000_003 + n)
        path = os.path.join(folder, f"{n:04}")
        if rng.random() < 0.3:
            tree(path, rng, 3)
        else:
            file(path, rng, size(rng))


main()
