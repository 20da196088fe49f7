"""What is started around a proxy that is measured, and the checks that it is comparable."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import peers

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("KEYWARD_BENCH_CACHE", os.path.expanduser("~/.cache/keyward-bench"))
GOOD, BAD = "Good", "Made"


class Bench:
    """Stand-ins, load and peers, and the folder that their files are in."""

    def __init__(self, options):
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="keyward-bench-")
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            sys.exit("two cores are needed: one for the proxy that is measured, one for everything else")
        self.proxy_core, self.load_core = cores[0], cores[1]
        self.load = build_load(options.cache)
        self.ports = {name: peers.find_port() for name in ("upstream", "scalekit", "adapter")}
        self.peers = []
        self.problems = []
        serve = [self.load, "serve"]
        for name, port in self.ports.items():
            serve += [f"--{name}", f"127.0.0.1:{port}"]
        self.stand_ins = subprocess.Popen(serve, preexec_fn=self.pin_load)

    def wait(self):
        wait_until(lambda: self.count_verdicts() is not None, "the stand-ins do not start")

    def pin_load(self):
        os.sched_setaffinity(0, {self.load_core})

    def count_verdicts(self, delay=None):
        path = "counts" if delay is None else f"delay/{delay}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['upstream']}/bench/{path}", timeout=5) as answer:
                return json.load(answer)["verdicts"]
        except OSError:
            return None

    def start(self, kind, name, binary, settings=None):
        """Starts a peer and checks that it does what it is compared for."""
        peer = kind(name, binary, self.folder, self.ports, settings)
        peer.start(self.proxy_core)
        self.peers.append(peer)
        try:
            wait_until(lambda: ask(peer.http1, "/echo", GOOD)[0] == 200, "does not serve")
            check(peer)
        except AssertionError as error:
            sys.exit(f"{name} is not comparable: {error}\n{peer.read_output()}")
        return peer

    def stop(self, peer):
        peer.stop()
        self.peers.remove(peer)

    def run(self, peer, load, seconds, warm=0.25):
        """One run of the load against a peer: what the load printed, with the CPU time of the peer and of the stand-ins."""
        arguments = {"connections": 64, **load, "seconds": seconds, "warm": warm}
        port = peer.http2 if arguments.get("http") == 2 else peer.http1
        if "decision" in arguments:
            port = peer.decision
        pids = peer.find_processes()
        command = [self.load, "run", "--address", f"127.0.0.1:{port}", "--watch", ",".join(map(str, [*pids, self.stand_ins.pid]))]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        # A proxy that was measured before may have requests left over.
        time.sleep(0.1)
        verdicts = self.count_verdicts()
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warm + 60, preexec_fn=self.pin_load)
        if done.returncode:
            sys.exit(f"{peer.name}: {done.stderr}")
        result = json.loads(done.stdout)
        if peer.log:
            result["log"] = find_line(peer.log, result["statuses"])
            os.truncate(peer.log, 0)
        proxy = [result["cpu"][str(pid)] for pid in pids]
        others = [result["cpu"][str(pid)] for pid in (self.stand_ins.pid, "self")]
        result["cpu"] = sum(ran for ran, _ in proxy)
        # Running, or waiting for the core that something else had: near 1, it is this side that could not do more.
        result["proxy_busy"] = min(sum(ran + waited for ran, waited in proxy) / result["seconds"] / 1e9, 1)
        result["others_busy"] = min(max(ran + waited for ran, waited in others) / result["seconds"] / 1e9, 1)
        result["requests"] = sum(result["statuses"].values())
        result["calls"] = (self.count_verdicts() - verdicts) / max(result["sent"], 1)
        return result

    def hold(self, peer, connections):
        """Opens idle connections and returns the peer's memory with them, or None if it does not take so many."""
        command = [self.load, "hold", "--address", f"127.0.0.1:{peer.http1}", "--key", GOOD]
        command += ["--connections", str(connections), "--seconds", "60"]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=self.pin_load)
        try:
            if holder.stdout.readline() != b"ready\n":
                return None
            time.sleep(2)
            return peer.read_memory()
        finally:
            holder.kill()
            holder.wait()

    def close(self):
        for peer in self.peers:
            peer.stop()
        self.stand_ins.kill()
        self.stand_ins.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def build_load(cache):
    """The stand-ins and the load are a crate of their own, built outside the checkout."""
    target = os.path.join(cache, "target")
    manifest = os.path.join(HERE, "load", "Cargo.toml")
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked", "--manifest-path", manifest, "--target-dir", target], check=True)
    return os.path.join(target, "release", "keyward-load")


def build_keyward():
    root = os.path.dirname(HERE)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(root, "target"))
    subprocess.run(["cargo", "build", "--release", "--locked", "--target-dir", target], cwd=root, check=True)
    return os.path.join(target, "release", "keyward")


def find_line(log, statuses):
    """A line of the rarest status, if there were several."""
    rarest = min(statuses, key=statuses.get, default="")
    with open(log, errors="replace") as file:
        return next((line.strip() for line in file if rarest in line), "") if len(statuses) > 1 else ""


def wait_until(condition, what, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def ask(port, path, key=None):
    """One request with a forged identity: status and body, or status 0."""
    headers = f"GET {path} HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\nX-Org-Id: forged\r\n"
    if key:
        headers += f"Authorization: Bearer {key}0123456789MadeUpKeyOfNobody0123456789xY9Z\r\n"
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
            stream.sendall(headers.encode() + b"\r\n")
            while piece := stream.recv(65536):
                answer += piece
    except OSError:
        pass
    status = answer.split(b" ", 2)[1] if answer.startswith(b"HTTP/1.") else b"0"
    return int(status), answer.partition(b"\r\n\r\n")[2].decode(errors="replace").lower()


def check(peer):
    """Good keys alone pass, keys and forged identities never do, and each request leaves a line of JSON."""
    status, head = ask(peer.http1, "/v1/echo", GOOD)
    assert status == 200, f"a good key gets {status}"
    assert f"x-org-id: {peers.ORGANIZATION}" in head, f"no identity upstream: {head}"
    assert "forged" not in head, f"a forged identity upstream: {head}"
    assert "authorization" not in head, f"the key upstream: {head}"
    for key in (None, BAD):
        status, _ = ask(peer.http1, "/v1/echo", key)
        assert status == 401, f"key {key} gets {status}"
    status, head = ask(peer.http1, "/public/echo", GOOD)
    assert status == 200, f"the open route answers {status}"
    assert "forged" not in head and "authorization" not in head, f"on the open route: {head}"

    def read_log():
        with open(peer.log) as file:
            return [line for line in file if line.startswith("{") and "/public/echo" in line]

    wait_until(read_log, "no access log", 12)
    json.loads(read_log()[0])
    peer.idle_memory = peer.read_memory()
