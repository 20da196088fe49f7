"""The proxies that are measured: how each is found, configured and started.

Every configuration says the same: one worker, a JSON line in the access log for each request, one call for each request that
needs a key (Keyward: to Scalekit; the others: to a header-only adapter), the key and a forged identity removed, the identity
set, request bodies streamed, connections to everything kept. Paths below /public/ need no key.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

ORGANIZATION = "org_123456789012345"


def find_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Peer:
    """One running proxy. `http2` is its port for HTTP/2 in clear text, or None."""

    def __init__(self, name, binary, folder, ports, settings=None):
        self.name, self.binary, self.ports = name, binary, ports
        self.settings = settings or {}
        self.folder = os.path.join(folder, name.replace(" ", "-"))
        os.makedirs(self.folder, exist_ok=True)
        self.http1, self.http2 = find_port(), find_port()
        self.log = os.path.join(self.folder, "access.log")
        self.process = None

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def prepare(self):
        """Writes the configuration; returns the command and what it adds to the environment."""
        raise NotImplementedError

    def read_version(self):
        for flag in ("-v", "--version", "version"):
            result = subprocess.run([self.binary, flag], capture_output=True, text=True)
            words = (result.stdout + result.stderr).replace("/", " ").split()
            for word in words:
                if word[:1].isdigit() or (word[:1] == "v" and word[1:2].isdigit()):
                    return word.strip("v,")
        return "?"

    def start(self, core):
        command, environment = self.prepare()
        output = open(os.path.join(self.folder, "output"), "ab")
        log = open(self.log, "ab")
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "HOME": self.folder, **environment},
            stdout=log if self.log_on_stdout else output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    log_on_stdout = False

    def find_processes(self):
        """Its process and their children, which can be born late."""
        found = [self.process.pid]
        for pid in found:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += [int(child) for child in file.read().split()]
        return found

    def read_memory(self, field="VmRSS"):
        """In bytes, over its processes."""
        total = 0
        for pid in self.find_processes():
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))
        return total

    def count_descriptors(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.find_processes())

    def stop(self):
        if self.process is None:
            return
        # SIGINT and SIGTERM drain: SIGKILL to what this program started, children first.
        try:
            pids = self.find_processes()
        except OSError:
            pids = [self.process.pid]
        for pid in reversed(pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def read_output(self):
        with open(os.path.join(self.folder, "output"), errors="replace") as file:
            return file.read()[-2000:]


class Keyward(Peer):
    log_on_stdout = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.http2 = self.http1

    def prepare(self):
        ports, share = self.ports, self.settings.get("share", True)
        admin = find_port()
        routes = "".join(
            f'[[routes]]\npath = "/r{number}/*"\nupstream = "up"\n' for number in range(self.settings.get("routes", 0))
        )
        config = self.write("keyward.toml", f"""version = 1
[server]
listen = "127.0.0.1:{self.http1}"
[admin]
listen = "127.0.0.1:{admin}"
[log]
format = "json"
[scalekit]
{"" if share else "max_in_flight_per_key = 1000000"}
[upstreams.up]
url = "http://127.0.0.1:{ports["upstream"]}"
[[routes]]
path = "/public/*"
upstream = "up"
auth = "none"
[[routes]]
path = "/*"
upstream = "up"
{routes}""")
        return [self.binary, "run", "--config", config], {
            "SCALEKIT_ENVIRONMENT_URL": f"http://127.0.0.1:{ports['scalekit']}",
            "SCALEKIT_CLIENT_ID": "dev",
            "SCALEKIT_CLIENT_SECRET": "dev",
        }


class Nginx(Peer):
    def prepare(self):
        ports = self.ports
        common = "proxy_pass http://up; proxy_request_buffering off; proxy_http_version 1.1;" \
            ' proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header Authorization "";'
        config = self.write("nginx.conf", f"""
worker_processes 1; daemon off; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 40000;
events {{ worker_connections 30000; }}
http {{
  log_format json escape=json '{{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr","method":"$request_method",'
    '"path":"$uri","protocol":"$server_protocol","host":"$host","status":$status,"request_bytes":$request_length,'
    '"response_bytes":$body_bytes_sent,"duration":$request_time,"upstream":"$upstream_addr","upstream_status":"$upstream_status",'
    '"upstream_duration":"$upstream_response_time","user_agent":"$http_user_agent","org":"$org_id"}}';
  access_log {self.log} json;
  client_max_body_size 0; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream up {{ server 127.0.0.1:{ports["upstream"]}; keepalive 1024; keepalive_requests 1000000000; }}
  upstream adapter {{ server 127.0.0.1:{ports["adapter"]}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{self.http1}; listen 127.0.0.1:{self.http2} http2;
    location / {{
      auth_request /_auth; auth_request_set $org_id $upstream_http_x_org_id;
      {common} proxy_set_header X-Org-Id $org_id;
    }}
    location /public/ {{ {common} proxy_set_header X-Org-Id ""; }}
    location = /_auth {{
      internal; proxy_pass http://adapter; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }}
  }}
}}
""")
        return [self.binary, "-p", self.folder, "-c", config], {}


KINDS = [Nginx]


def find_binary(name, cache):
    cached = os.path.join(cache, "peers", name)
    return cached if os.access(cached, os.X_OK) else shutil.which(name)
