#!/usr/bin/env bash
# Compares quern with llama-server on this machine: same model file, same threads, both loaded, one driven at a
# time, A B A B. Results go to bench/results/<date>-<NAME>/, with a REPORT.md over all workloads.
#
#   MODEL=/path/to/model.gguf bench/compare.sh
#
# By environment:
#   MODEL          the GGUF file both serve                        (required)
#   NAME           what the comparison is called                   (default: compare)
#   WORKLOADS      which to run, also files                        (default: chat intents long-prompt)
#   ROUNDS         pairs a level                                   (default: 3)
#   THREADS        threads of each server                          (default: all cores)
#   SLOTS, CTX     requests at once and KV tokens of each server   (default: 8, 16384)
#   COLD_STARTS    starts of each server to time, 0 for none       (default: 5)
#   QUERN          the binary                                      (default: target/release/quern)
#   QUERN_BENCH    the binary                                      (default: target/release/quern-bench)
#   QUERN_ARGS     further switches of `quern serve`
#   INTENTS_CSV    a larger file of intent queries, text,label     (default: the rows of the workload)
#   RESULTS        where results go                                (default: bench/results)
#   PORT           first of the three ports used                   (default: 18080)
# and the PEER_ variables of bench/peers/llama-server.sh, which must have built the peer before.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
model=${MODEL:?set MODEL to a GGUF file}
rounds=${ROUNDS:-3}
threads=${THREADS:-$(nproc)}
slots=${SLOTS:-8}
ctx=${CTX:-16384}
cold_starts=${COLD_STARTS:-5}
target=${CARGO_TARGET_DIR:-$root/target}
quern=${QUERN:-$target/release/quern}
bench=${QUERN_BENCH:-$target/release/quern-bench}
out=${RESULTS:-$root/bench/results}/$(date -u +%F)-${NAME:-compare}
quern_port=${PORT:-18080}
admin_port=$((quern_port + 1))
peer_port=$((quern_port + 2))
read -ra workloads <<<"${WORKLOADS:-chat intents long-prompt}"
read -ra quern_args <<<"${QUERN_ARGS:-}"

mkdir -p "$out"
# Servers' logs name this machine's folders: they are no part of the results, and stay only if something fails.
logs=$(mktemp -d)
quern_command=("$quern" serve --model "$model" --listen "127.0.0.1:$quern_port"
    --admin-listen "127.0.0.1:$admin_port" --threads "$threads" --threads-prefill "$threads"
    --kv-capacity "$ctx" --max-running "$slots" "${quern_args[@]}")
export PEER_PORT=$peer_port PEER_THREADS=$threads PEER_SLOTS=$slots PEER_CTX=$ctx
peer_command=("$root/bench/peers/llama-server.sh" start "$model")

pids=()
# shellcheck disable=SC2317  # Called when the script ends.
stop_servers() {
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}
trap stop_servers EXIT

wait_ready() { # name, url, pid
    for _ in $(seq 600); do
        curl --silent --fail --output /dev/null "$2" && return
        kill -0 "$3" 2>/dev/null || break
        sleep 0.2
    done
    echo "compare.sh: $1 is not ready: see $logs/$1.log" >&2
    exit 1
}

# A wrong answer or a failed request in one workload does not stop the others, but shows in the exit code.
failed=0
note_failure() { # what
    echo "compare.sh: $1 did not pass" >&2
    failed=1
}

if [ "$cold_starts" -gt 0 ]; then
    "$bench" cold-start --name quern --rounds "$cold_starts" --out "$out/cold-start-quern" \
        --url "http://127.0.0.1:$quern_port" --ready-url "http://127.0.0.1:$admin_port/ready" \
        -- "${quern_command[@]}" || note_failure "cold start of quern"
    "$bench" cold-start --name llama-server --rounds "$cold_starts" --out "$out/cold-start-llama-server" \
        --url "http://127.0.0.1:$peer_port" --ready-url "http://127.0.0.1:$peer_port/health" \
        -- "${peer_command[@]}" || note_failure "cold start of llama-server"
fi

"${quern_command[@]}" >"$logs/quern.log" 2>&1 &
pids+=($!)
wait_ready quern "http://127.0.0.1:$admin_port/ready" $!
"${peer_command[@]}" >"$logs/llama-server.log" 2>&1 &
pids+=($!)
wait_ready llama-server "http://127.0.0.1:$peer_port/health" $!

quern_version=$("$quern" --version 2>/dev/null || echo unknown)
peer_version=$(curl --silent "http://127.0.0.1:$peer_port/props" |
    sed -n 's/.*"build_info":"\([^"]*\)".*/\1/p')
for workload in "${workloads[@]}"; do
    extra=()
    [ "$workload" = intents ] && [ -n "${INTENTS_CSV:-}" ] && extra=(--csv "$INTENTS_CSV")
    "$bench" run "$workload" --rounds "$rounds" --out "$out/$(basename "$workload" .toml)" \
        --url "http://127.0.0.1:$quern_port" --name quern \
        --url "http://127.0.0.1:$peer_port" --name llama-server \
        --note "quern: $quern_version" --note "llama-server: ${peer_version:-unknown}" \
        --note "$threads threads, $slots slots, $ctx KV tokens each; model file $(basename "$model")" \
        "${extra[@]}" || note_failure "$workload"
done

"$bench" report "$out"
[ "$failed" -ne 0 ] || rm -r "$logs"
exit "$failed"
