#!/usr/bin/env bash
# CPU time of Keyward per request, and its memory: Keyward alone on core 0; upstream, a stand-in for Scalekit (both nginx) and
# the load (wrk) on core 1. Every request carries a good key, and each is validated. Needs nginx, wrk and taskset.
#
#   benches/cpu_per_request.sh [connections] [seconds] [path]     /public/… asks for no key
set -euo pipefail
cd "$(dirname "$0")/.."
connections=${1:-64} seconds=${2:-5} path=${3:-/v1/orders}
cargo build --release --quiet
work=$(mktemp -d)
trap 'kill $keyward $nginx 2>/dev/null; wait 2>/dev/null; rm -r "$work"' EXIT

cat > "$work/nginx.conf" <<CONF
worker_processes 1; daemon off; pid $work/nginx.pid; error_log /dev/null;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; default_type application/json;
  server { listen 127.0.0.1:9101; location / { return 200 '{"ok":true}'; } }
  server {
    listen 127.0.0.1:9102;
    location = /oauth/token { return 200 '{"access_token":"made-up","token_type":"Bearer","expires_in":86399}'; }
    location = /api/v1/tokens:validate { return 200 '{"token_info":{"token_id":"apit_123456789012345","organization_id":"org_123456789012345","organization_external_id":"org-ext-001","user_id":"usr_987654321098765","user_external_id":"user-ext-001","custom_claims":{"team":"engineering"},"created_at":"2026-11-24T03:00:00.123Z","description":"CI","token_suffix":"xY9Z","email":"user@example.com","roles":["admin","reader"]}}'; }
  }
}
CONF
cat > "$work/keyward.toml" <<CONF
version = 1
[server]
listen = "127.0.0.1:9100"
[admin]
listen = "127.0.0.1:9109"
[log]
access = false
[scalekit]
max_in_flight_per_key = 100000   # no sharing: one validation for each request
[upstreams.up]
url = "http://127.0.0.1:9101"
[[routes]]
path = "/public/*"
upstream = "up"
auth = "none"
[[routes]]
path = "/*"
upstream = "up"
CONF
taskset -c 1 nginx -c "$work/nginx.conf" & nginx=$!
export SCALEKIT_ENVIRONMENT_URL=http://127.0.0.1:9102 SCALEKIT_CLIENT_ID=dev SCALEKIT_CLIENT_SECRET=dev
taskset -c 0 target/release/keyward run --config "$work/keyward.toml" > "$work/log" 2>&1 & keyward=$!
# The stand-in calls every key valid, which the probe rightly takes for a mistake: so Keyward is never "ready" here, and serves.
until taskset -c 0 target/release/keyward healthcheck --admin 127.0.0.1:9109 --live > /dev/null 2>&1; do sleep 0.1; done

key=MadeUpKeyOfNobody0123456789MadeUpKeyOfNobody0123456789MadeUpKeyOfNobodyxY9Z
load() { taskset -c 1 wrk -t1 -c"$connections" -d"$1"s --latency -H "Authorization: Bearer $key" "http://127.0.0.1:9100$path"; }
ticks() { awk '{print $14 + $15}' "/proc/$keyward/stat"; }
idle=$(awk '/VmRSS/{print $2}' "/proc/$keyward/status")
load 1 > /dev/null
before=$(ticks)
load "$seconds" > "$work/out"
after=$(ticks)
requests=$(awk '/requests in/{print $1}' "$work/out")
awk -v ticks=$((after - before)) -v requests="$requests" -v hz="$(getconf CLK_TCK)" \
  'BEGIN { printf "%.1f µs of CPU a request, %d requests\n", ticks / hz / requests * 1e6, requests }'
echo "resident memory: $idle kB idle, $(awk '/VmHWM/{print $2}' "/proc/$keyward/status") kB at most"
grep -E "Non-2xx|50%|99%|Requests/sec" "$work/out"
