"""A daemon under test. The program is the `chiral` on the PATH."""
import json
import os
import pathlib
import subprocess
import time

TCP = "/ip4/127.0.0.1/tcp/0"
PATIENCE = 200


class Failed(Exception):
    pass


def run(command, env=None, timeout=PATIENCE):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env and {**os.environ, **env}, timeout=timeout)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


class Daemon:
    """A daemon with its mount, in a folder of its own; private unless its arguments say what else to ask."""

    def __init__(self, folder, *args, listen=(TCP,), private=True):
        self.folder = pathlib.Path(folder)
        self.mount, self.data = self.folder / "mnt", self.folder / "data"
        self.args = ["--private"] * private + [arg for at in listen for arg in ("--listen", at)] + list(args)
        self.mount.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self):
        start = time.perf_counter()
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(["chiral", "mount", "--data-dir", str(self.data), *self.args, str(self.mount)],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        self.started_in = time.perf_counter() - start
        if not line.startswith("mounted "):
            raise Failed(f"chiral did not start: {(self.folder / 'log').read_text()}")

    def stop(self):
        self.process.terminate()
        code = self.process.wait(30)
        self.log.close()
        if code != 0:
            raise Failed(f"chiral ended with {code}: {(self.folder / 'log').read_text()}")

    def cli(self, *args):
        return run(["chiral", *args], {"CHIRAL_DATA_DIR": str(self.data)})

    def json(self, *args):
        return json.loads(self.cli(*args, "--json"))

    def cid(self, name):
        """The id of something published."""
        return os.getxattr(self.mount / "upload" / name, "user.chiral.cid").decode()
