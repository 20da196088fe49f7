"""The proxies that are measured: how each is found, configured and started.

Every configuration says the same: one worker, a JSON line in the access log for each request, one call for each request that
needs a key (Keyward: to Scalekit; the others: to a header-only adapter), the key and a forged identity removed, the identity
set, request bodies streamed, connections to everything kept. Paths below /public/ need no key.
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess

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
        result = subprocess.run([self.binary, self.version_flag], capture_output=True, text=True)
        found = re.search(r"\d+\.\d+\.\d+", result.stdout + result.stderr)
        return found[0] if found else "?"

    version_flag = "--version"
    log_on_stdout = False

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
        # With it, a quarter of connections and memory is not for the proxy.
        self.decision = find_port() if self.settings.get("decision") else None

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
{f'[decision]{chr(10)}listen = "127.0.0.1:{self.decision}"' if self.decision else ""}
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


class Direct(Peer):
    """The upstream itself, to know what the way there costs without a proxy."""

    def __init__(self, folder, port, process):
        super().__init__("direct", None, folder, {})
        self.http1, self.process, self.log = port, process, None


class Other(Peer):
    """A proxy that is not Keyward: it asks the adapter, once for each request that needs a key."""


class Nginx(Other):
    version_flag = "-v"

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


class Haproxy(Other):
    """Asks the adapter in Lua, which is how HAProxy makes a call before it forwards."""

    log_on_stdout = True
    version_flag = "-v"

    def prepare(self):
        ports = self.ports
        script = self.write("auth.lua", f"""
local function ask(txn, key)
  local request = core.httpclient()
  return request:get{{url = "http://127.0.0.1:{ports["adapter"]}/", headers = {{authorization = {{key}}}}}}
end
core.register_action("ask", {{"http-req"}}, function(txn)
  local key = txn.sf:req_hdr("authorization")
  txn:set_var("txn.org", "")
  if key ~= "" then
    local answer = ask(txn, key)
    if answer and answer.status == 200 then txn:set_var("txn.org", answer.headers["x-org-id"][0]) end
  end
end, 0)
""")
        variables = {
            "time": "%Ts", "request_id": "%ID", "client": "%ci", "method": "%HM", "path": "%HP", "protocol": "%HV",
            "host": "%[var(txn.host)]", "status": "%ST", "request_bytes": "%U", "response_bytes": "%B", "duration": "%Ta",
            "upstream": "%s", "wait": "%Tw", "upstream_duration": "%Tr", "user_agent": "%[var(txn.agent)]", "org": "%[var(txn.org)]",
        }
        line = ",".join(f'\\"{name}\\":\\"{value}\\"' for name, value in variables.items())
        config = self.write("haproxy.cfg", f"""
global
  nbthread 1
  maxconn {min(16000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)}
  log stdout format raw local0
  lua-load {script}
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  log global
  log-format "{{{line}}}"
  http-reuse always
frontend in
  bind 127.0.0.1:{self.http1}
  bind 127.0.0.1:{self.http2} proto h2
  unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid
  http-request set-var(txn.host) req.hdr(host)
  http-request set-var(txn.agent) req.hdr(user-agent)
  http-request del-header X-Org-Id
  http-request lua.ask unless {{ path_beg /public/ }}
  http-request deny deny_status 401 unless {{ path_beg /public/ }} or {{ var(txn.org) -m found }} !{{ var(txn.org) -m len 0 }}
  http-request set-header X-Org-Id %[var(txn.org)] unless {{ path_beg /public/ }}
  http-request del-header Authorization
  default_backend up
backend up
  server up 127.0.0.1:{ports["upstream"]} pool-max-conn -1
""")
        return [self.binary, "-f", config], {}


class Envoy(Other):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.http2 = self.http1

    def prepare(self):
        def cluster(name):
            address = {"socket_address": {"address": "127.0.0.1", "port_value": self.ports[name]}}
            limit = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
            return {
                "name": name,
                "connect_timeout": "5s",
                "circuit_breakers": {"thresholds": [limit]},
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                },
            }

        def typed(kind, **fields):
            return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}

        log = typed("access_loggers.file.v3.FileAccessLog", path=self.log, log_format={"json_format": {
            "time": "%START_TIME%", "request_id": "%REQ(X-REQUEST-ID)%", "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
            "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%", "protocol": "%PROTOCOL%", "host": "%REQ(:AUTHORITY)%",
            "status": "%RESPONSE_CODE%", "request_bytes": "%BYTES_RECEIVED%", "response_bytes": "%BYTES_SENT%",
            "duration": "%DURATION%", "upstream": "%UPSTREAM_HOST%", "upstream_duration": "%RESPONSE_DURATION%",
            "user_agent": "%REQ(USER-AGENT)%", "org": "%REQ(X-ORG-ID)%",
        }})
        authorize = typed("filters.http.ext_authz.v3.ExtAuthz", http_service={
            "server_uri": {"uri": "http://127.0.0.1", "cluster": "adapter", "timeout": "5s"},
            "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "x-org-id"}]}},
        })
        skip = {"envoy.filters.http.ext_authz": typed("filters.http.ext_authz.v3.ExtAuthzPerRoute", disabled=True)}
        to_upstream = {"cluster": "upstream", "timeout": "600s"}
        routes = [
            {"match": {"prefix": "/public/"}, "route": to_upstream, "typed_per_filter_config": skip,
             "request_headers_to_remove": ["authorization", "x-org-id"]},
            {"match": {"prefix": "/"}, "route": to_upstream, "request_headers_to_remove": ["authorization"]},
        ]
        manager = typed(
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="in",
            access_log=[{"name": "log", "typed_config": log}],
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            http_filters=[
                {"name": "envoy.filters.http.ext_authz", "typed_config": authorize},
                {"name": "router", "typed_config": typed("filters.http.router.v3.Router")},
            ],
        )
        config = self.write("envoy.json", json.dumps({"static_resources": {
            "listeners": [{
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.http1}},
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }],
            "clusters": [cluster("upstream"), cluster("adapter")],
        }}))
        return [self.binary, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"], {}


class Caddy(Other):
    version_flag = "version"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.http2 = self.http1

    def prepare(self):
        ports = self.ports
        proxy = f"""reverse_proxy 127.0.0.1:{ports["upstream"]} {{
      header_up -Authorization
      transport http {{
        keepalive_idle_conns_per_host 1024
      }}
    }}"""
        config = self.write("Caddyfile", f"""{{
  admin off
  auto_https off
  persist_config off
  servers {{
    protocols h1 h2 h2c
  }}
}}
http://127.0.0.1:{self.http1}, http://bench.test:{self.http1} {{
  bind 127.0.0.1
  log {{
    output file {self.log} {{
      roll_disabled
    }}
    format json
  }}
  request_header -X-Org-Id
  handle /public/* {{
    {proxy}
  }}
  handle {{
    forward_auth 127.0.0.1:{ports["adapter"]} {{
      uri /
      copy_headers X-Org-Id
      transport http {{
        keepalive_idle_conns_per_host 1024
      }}
    }}
    {proxy}
  }}
}}
""")
        return [self.binary, "run", "--config", config, "--adapter", "caddyfile"], {"GOMAXPROCS": "1"}


class Traefik(Other):
    version_flag = "version"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.http2 = self.http1

    def prepare(self):
        ports = self.ports
        routes = self.write("routes.yaml", f"""
http:
  routers:
    open: {{ rule: "PathPrefix(`/public/`)", priority: 100, service: up, middlewares: [strip] }}
    key: {{ rule: "PathPrefix(`/`)", priority: 1, service: up, middlewares: [ask, hide] }}
  middlewares:
    strip: {{ headers: {{ customRequestHeaders: {{ X-Org-Id: "", Authorization: "" }} }} }}
    hide: {{ headers: {{ customRequestHeaders: {{ Authorization: "" }} }} }}
    ask: {{ forwardAuth: {{ address: "http://127.0.0.1:{ports["adapter"]}/", authResponseHeaders: [X-Org-Id] }} }}
  services:
    up: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:{ports["upstream"]}" }} ], serversTransport: keep }} }}
  serversTransports:
    keep: {{ maxIdleConnsPerHost: 1024 }}
""")
        config = self.write("traefik.yaml", f"""
global: {{ checkNewVersion: false, sendAnonymousUsage: false }}
log: {{ level: ERROR }}
entryPoints: {{ in: {{ address: "127.0.0.1:{self.http1}" }} }}
providers: {{ file: {{ filename: {routes} }} }}
accessLog: {{ filePath: {self.log}, format: json }}
""")
        return [self.binary, f"--configFile={config}"], {"GOMAXPROCS": "1"}


OTHERS = [Nginx, Haproxy, Envoy, Caddy, Traefik]


def find_binary(name, cache):
    cached = os.path.join(cache, "peers", name)
    return cached if os.access(cached, os.X_OK) else shutil.which(name)
