"""Nodes of four implementations behind one set of methods; every address is one of this machine."""
import json
import os
import pathlib
import shutil
import subprocess
import time

from daemon import TCP, Daemon, Failed, run

LISTEN = {"tcp": TCP, "quic": "/ip4/127.0.0.1/udp/0/quic-v1"}


class Lines:
    """A node that takes orders on its standard input: boxo's and Helia's."""

    def __init__(self, command, log):
        self.log = open(log, "ab")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        about = self.order(do="about")
        self.id, self.addrs, self.gateway = about["id"], about["addrs"], about.get("gateway")

    def order(self, **order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise Failed("the peer has ended")
        answer = json.loads(line)
        if answer.get("error"):
            raise Failed(answer["error"])
        return answer

    def add(self, path, shape):
        return self.order(do="add", path=str(path), shape=shape)["cid"]

    def get(self, cid, out):
        self.order(do="get", cid=cid, path=str(out))

    def connect(self, addr):
        self.order(do="connect", addr=addr)

    def provide(self, cid):
        self.order(do="provide", cid=cid)

    def find(self, cid):
        return self.order(do="find", cid=cid)["found"] or []

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.log.close()


class Kubo:
    """A Kubo daemon with the `test` profile: loopback only, its LAN DHT takes loopback addresses."""

    def __init__(self, program, home, listen, settings=(), args=()):
        self.program, self.home = program, pathlib.Path(home)
        self.env = {"IPFS_PATH": str(self.home), "GOLOG_LOG_LEVEL": "error"}
        self.cli("init", "--profile=test")
        for key, value in [("Addresses.Swarm", listen), ("Addresses.API", "/ip4/127.0.0.1/tcp/0"), ("Addresses.Gateway", "/ip4/127.0.0.1/tcp/0"),
                           ("Bootstrap", []), ("Discovery.MDNS.Enabled", False), ("AutoConf.Enabled", False), ("DNS.Resolvers", {}),
                           ("Routing.DelegatedRouters", []), ("Ipns.DelegatedPublishers", []), ("AutoTLS.Enabled", False), *settings]:
            self.cli("config", "--json", key, json.dumps(value))
        self.log = open(self.home / "daemon.log", "ab")
        self.process = subprocess.Popen([program, "daemon", *args], env={**os.environ, **self.env}, stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            if "Daemon is ready" in line:
                break
        else:
            raise Failed(f"kubo did not start: {(self.home / 'daemon.log').read_text()}")
        about = json.loads(self.cli("id"))
        self.id, self.addrs = about["ID"], about["Addresses"]
        self.gateway = (self.home / "gateway").read_text().strip()

    def cli(self, *args):
        return run([self.program, *args], self.env)

    def add(self, path, shape):
        flags = ["--cid-version=0" if shape.get("cidv0") else "--cid-version=1"]
        flags += ["--trickle"] * bool(shape.get("trickle"))
        flags += ["--raw-leaves=false"] * bool(shape.get("pb_leaves") or shape.get("cidv0"))
        flags += [f"--chunker={shape['chunker']}"] if shape.get("chunker") else []
        flags += [f"--hash={shape['hash']}"] if shape.get("hash") else []
        flags += ["--inline", f"--inline-limit={shape['inline']}"] if shape.get("inline") else []
        flags += ["--preserve-mode", "--preserve-mtime"] * bool(shape.get("keep_stats"))
        return self.cli("add", "-r", "-Q", *flags, path)

    def get(self, cid, out):
        # One small file after the other takes a round of waiting each; a pin fetches all of it side by side.
        self.cli("pin", "add", cid)
        self.cli("get", "-o", out, cid)

    def connect(self, addr):
        self.cli("swarm", "connect", addr)

    def provide(self, cid):
        self.cli("routing", "provide", cid)

    def find(self, cid):
        return self.cli("routing", "findprovs", "-n", "1", cid).split()

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


class Chiral(Daemon):
    """A private daemon with its mount."""

    def __init__(self, home, listen, *args):
        super().__init__(home, *args, listen=listen)
        about = self.json("id")
        self.id, self.addrs = about["peer_id"], about["addresses"]

    def add(self, path, _shape):
        run(["cp", "-a", path, self.mount / "upload" / path.name])
        return self.cid(path.name)

    def get(self, cid, out):
        run(["cp", "-a", self.mount / cid, out])

    def connect(self, addr):
        self.cli("connect", addr)

    def close(self):
        self.stop()


class Lab:
    """Starts nodes in folders of their own and ends all of them."""

    def __init__(self, folder, programs):
        self.folder, self.programs, self.nodes, self.count = pathlib.Path(folder), programs, [], 0

    def start(self, kind, transports=("tcp",), *args, settings=()):
        self.count += 1
        home = self.folder / f"{kind}-{self.count}"
        listen = [LISTEN[t] for t in transports]
        if kind == "chiral":
            node = Chiral(home, listen, *args)
        elif kind == "kubo":
            node = Kubo(self.programs["kubo"], home, listen, settings)
        else:
            command = {"boxo": [self.programs.get("boxo"), "peer", "-listen"], "helia": self.programs.get("helia")}[kind]
            node = Lines([*command, ",".join(listen), *args], f"{home}.log")
        self.nodes.append(node)
        return node

    def end(self, node):
        self.nodes.remove(node)
        node.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in reversed(self.nodes):
            try:
                node.close()
            except (Failed, OSError, subprocess.SubprocessError) as error:
                print(f"ending a node: {error}")


def address(node, transport):
    wanted = {"tcp": "/tcp/", "quic": "/quic-v1"}[transport]
    for addr in node.addrs:
        if wanted in addr and "127.0.0.1" in addr:
            return addr
    raise Failed(f"no {transport} address among {node.addrs}")


def same(left, right):
    """Raises when two files or trees differ."""
    run(["diff", "-r", "--no-dereference", left, right])


def timed(work):
    start = time.monotonic()
    result = work()
    return result, time.monotonic() - start


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
