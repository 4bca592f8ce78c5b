#!/usr/bin/env bash
# Does quern-bench tell the truth? Drives a server whose latencies are known with it and with other load generators in
# turn, and prints their percentiles side by side; then drives it at 200 requests a second and prints what the client
# itself costs. Other generators are taken if they are installed: wrk, hey (Debian packages), oha (cargo install).
# Usage: bench/agree.sh [OUT]; ROUNDS and SECONDS_EACH change how often and how long.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-20} clients=16 port=${PORT:-18099}
out=${1:-$(mktemp --directory)}
bin=${CARGO_TARGET_DIR:-target}/release
url=http://127.0.0.1:$port
body='{"model":"m","messages":[{"role":"user","content":"Say hello."}],"max_tokens":8,"stream":true}'
mkdir -p "$out"
echo "tool,round,p50_ms,p95_ms,p99_ms,requests" >"$out/percentiles.csv"

server=
stop_server() {
    [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true
    server=
}
trap stop_server EXIT
start_server() { # further switches
    stop_server
    "$bin/examples/known_latency" --port "$port" "$@" 2>>"$out/server.log" &
    server=$!
    # Whoever else has the port may answer as well: ours must live when it does.
    until sleep 0.2 && curl --silent --fail "$url/v1/models" >/dev/null; do
        kill -0 "$server" 2>/dev/null || break
    done
    kill -0 "$server" 2>/dev/null || { echo "agree.sh: the server ended; see $out/server.log" >&2; exit 1; }
}

start_server

workload=$out/agree.toml
cat >"$workload" <<TOML
# What it asks: a server whose delays are known. What a good answer looks like: eight tokens.
name = "agree"
max_tokens = 8
prompts = { inline = ["Say hello."] }
load = { mode = "closed", clients = [$clients], duration_s = $seconds }
check = { min_tokens = 8 }
TOML
lua=$out/agree.lua
cat >"$lua" <<LUA
wrk.method, wrk.path, wrk.body = "POST", "/v1/chat/completions", '$body'
wrk.headers["content-type"] = "application/json"
function done(summary, latency)
    local at = function(percent) return latency:percentile(percent) / 1000 end
    io.write(string.format("result,%.3f,%.3f,%.3f,%d\n", at(50), at(95), at(99), summary.requests))
end
LUA

run_quern_bench() {
    "$bin/quern-bench" run "$workload" --url "$url" --out "$out/run" --warmup 0 >/dev/null
    jq --raw-output 'select(.type == "phase") | [.e2e.p50_ms, .e2e.p95_ms, .e2e.p99_ms, .num_ok] | @csv' "$out/run/results.jsonl"
}
# Percentiles of times in milliseconds, one a line. Ranks are rounded up.
percentiles() {
    sort --general-numeric-sort |
        awk '{ times[NR] = $1 }
             function at(share, rank) { rank = NR * share; return times[rank == int(rank) ? rank : int(rank) + 1] }
             END { printf "%.3f,%.3f,%.3f,%d\n", at(0.50), at(0.95), at(0.99), NR }'
}
# wrk adds times that no request had: for each that took twice the mean time between a connection's requests or longer,
# the same less one such time, less two, and so on (stats_correct in its stats.c). So its percentiles stand beside ours
# with the same done to them.
run_quern_bench_as_wrk() {
    jq --raw-output 'select(.type == "request") | .e2e_ms' "$out/run/results.jsonl" |
        awk -v ms=$((seconds * 1000)) -v clients=$clients '
             { times[NR] = $1 }
             END { gap = ms / int(NR / clients)
                   for (n = 1; n <= NR; n++) { print times[n]
                       if (times[n] >= 2 * gap) for (less = times[n] - gap; less > gap; less -= gap) print less } }' |
        percentiles
}
run_wrk() {
    wrk --threads 1 --connections $clients --duration "${seconds}s" --script "$lua" "$url" | sed -n 's/^result,//p'
}
# Its own table has too few percentiles and digits; the list of its requests has all.
run_hey() {
    hey -z "${seconds}s" -c $clients -m POST -T application/json -d "$body" -o csv "$url/v1/chat/completions" |
        tail --lines=+2 | cut --delimiter=, --fields=1 | awk '{ print $1 * 1000 }' | percentiles
}
run_oha() {
    oha -z "${seconds}s" -c $clients -m POST -T application/json -d "$body" --no-tui --output-format json "$url/v1/chat/completions" |
        jq --raw-output '[.latencyPercentiles.p50, .latencyPercentiles.p95, .latencyPercentiles.p99 | . * 1000]
                         + [.statusCodeDistribution["200"]] | @csv'
}

tools=(quern_bench)
for tool in wrk hey oha; do
    if command -v "$tool" >/dev/null; then tools+=("$tool"); else echo "$tool is not installed" >&2; fi
done
if command -v wrk >/dev/null; then tools=("${tools[0]}" quern_bench_as_wrk "${tools[@]:1}"); fi
for round in $(seq "$rounds"); do
    for tool in "${tools[@]}"; do
        line=$("run_$tool")
        echo "$tool,$round,$line" | tee --append "$out/percentiles.csv"
    done
done

# The client's cost: arrivals at a constant rate, answers of 8 tokens that come at once, and of 32 that come singly.
cost() {
    local name=$1 tokens=$2 gap_ms=$3
    start_server --base-ms 5 --scale-ms 10 --tokens "$tokens" --gap-ms "$gap_ms"
    cat >"$out/$name.toml" <<TOML
# What it asks: 200 requests a second of a server that costs little. What a good answer looks like: $tokens tokens.
name = "$name"
max_tokens = $tokens
prompts = { inline = ["Say hello."] }
load = { mode = "open", arrivals = "constant", rates = [200.0], duration_s = $seconds }
check = { min_tokens = $tokens }
TOML
    "$bin/quern-bench" run "$out/$name.toml" --url "$url" --rounds "$rounds" --out "$out/$name" --warmup 0 >/dev/null
    jq --raw-output --arg name "$name" 'select(.type == "phase") | [$name, .round + 1, .num_ok, .client_cpu_share * 100,
        .client_cpu_s * 1e6 / .num_ok, .wake_lateness.p50_ms, .wake_lateness.p99_ms] | @csv' "$out/$name/results.jsonl" |
        tee --append "$out/cost.csv"
}
echo "load,round,requests,cpu_percent_of_a_core,cpu_us_a_request,late_p50_ms,late_p99_ms" >"$out/cost.csv"
cost whole 8 0
cost streamed 32 5
