#!/usr/bin/env bash
# Compares quern with llama-server on this machine: same model file, same threads, both loaded, one driven at a
# time, A B A B. Results go to bench/results/<date>-<NAME>/, with a REPORT.md over all workloads.
#
#   MODEL=/path/to/model.gguf bench/compare.sh
#
# By environment:
#   NAME           what the comparison is called                   (default: compare)
#   WORKLOADS      which to run, also files                        (default: chat intents long-prompt)
#   CLASSIFIER     a PEFT folder with a classification head: the workload `classify`, labels from the model with
#                  the adapter merged into it beside llama-server's chat endpoint (default: not compared)
#   FORMAT         what the merged model is stored in              (default: Q4_0)
#   GENERATOR      a PEFT folder of a causal adapter: the workload `mixed-adapters`, 64 names that all stand for it
#                                                                  (default: not compared)
#   ROUNDS         pairs a level                                   (default: 3)
#   COLD_STARTS    starts of each server to time, 0 for none       (default: 5)
#   QUERN_ARGS     further switches of `quern serve`
#   INTENTS_CSV    a larger file of intent queries, text,label, for all but chat and long-prompt
#                                                                  (default: the rows of the workloads)
#   RESULTS        where results go                                (default: bench/results)
# and what node.sh names, which holds for both servers (here SLOTS is 16 and CTX 32768; PORT is the first of three), and the PEER_
# variables of peers/llama-server.sh, which must have built the peer before.
set -euo pipefail

SLOTS=${SLOTS:-16}
CTX=${CTX:-32768}
RESULTS=${RESULTS:-$(dirname "$0")/results}/$(date -u +%F)-${NAME:-compare}
source "$(dirname "$0")/node.sh"
rounds=${ROUNDS:-3}
cold_starts=${COLD_STARTS:-5}
peer_url=http://127.0.0.1:$((port + 2))
read -ra workloads <<<"${WORKLOADS:-chat intents long-prompt}"
read -ra quern_args <<<"${QUERN_ARGS:-}"
name_node_command "${quern_args[@]}"
base=$model
export PEER_PORT=$((port + 2)) PEER_THREADS=$threads PEER_SLOTS=$slots PEER_CTX=$ctx
peer_command=("$root/bench/peers/llama-server.sh" start "$base")

peer_pid=
stop_peer() {
    [ -z "$peer_pid" ] || { kill "$peer_pid" && wait "$peer_pid"; } 2>/dev/null || true
    peer_pid=
}
trap 'stop_peer; clean_up' EXIT

# A wrong answer or a failed request in one workload does not stop the others, but shows in the exit code.
failed=0
note_failure() { # what
    echo "compare.sh: $1 did not pass" >&2
    failed=1
}

if [ "$cold_starts" -gt 0 ]; then
    "$bench" cold-start --name quern --rounds "$cold_starts" --out "$results/cold-start-quern" \
        --url "$url" --ready-url "$admin/ready" \
        -- "${node_command[@]}" || note_failure "cold start of quern"
    "$bench" cold-start --name llama-server --rounds "$cold_starts" --out "$results/cold-start-llama-server" \
        --url "$peer_url" --ready-url "$peer_url/health" \
        -- "${peer_command[@]}" || note_failure "cold start of llama-server"
fi

start_both() { # further switches of the node, which serves $model; the peer serves the base
    start_node quern "${quern_args[@]}" "$@"
    "${peer_command[@]}" >"$work/llama-server.log" 2>&1 &
    peer_pid=$!
    wait_ready "$peer_url/health" "$peer_pid" "$work/llama-server.log"
}

quern_version=$("$quern" --version 2>/dev/null || echo unknown)
compare() { # workload
    local extra=() peer_version
    [[ "$1" =~ ^(chat|long-prompt)$ ]] || [ -z "${INTENTS_CSV:-}" ] || extra=(--csv "$INTENTS_CSV")
    peer_version=$(curl --silent "$peer_url/props" | sed -n 's/.*"build_info":"\([^"]*\)".*/\1/p')
    "$bench" run "$1" --rounds "$rounds" --out "$results/$(basename "$1" .toml)" \
        --url "$url" --name quern \
        --url "$peer_url" --name llama-server \
        --note "quern: $quern_version" --note "llama-server: ${peer_version:-unknown}" \
        --note "$threads threads, $slots slots, $ctx KV tokens each; model file $(basename "$model")" \
        "${extra[@]}" || note_failure "$1"
}

start_both
for workload in "${workloads[@]}"; do
    compare "$workload"
done
stop_node
stop_peer

if [ -n "${CLASSIFIER:-}" ]; then
    "$quern" adapter merge "$base" "$CLASSIFIER" --out "$work/merged.gguf"
    model=$work/labels.${FORMAT:=Q4_0}.gguf
    "$quern" quantize "$work/merged.gguf" "$model" "$FORMAT"
    rm "$work/merged.gguf"
    start_both
    compare classify
    stop_node
    stop_peer
    model=$base
fi

if [ -n "${GENERATOR:-}" ]; then
    "$quern" adapter convert "$GENERATOR" "$work/generator.gguf" --base "$base"
    PEER_ARGS="--lora-init-without-apply ${PEER_ARGS:-}"
    for n in $(seq 0 63); do
        printf '[[adapter]]\nname = "a%s"\npath = "%s"\n' "$n" "$(realpath "$GENERATOR")" >>"$work/node.toml"
        PEER_ARGS+=" --lora $work/generator.gguf"
    done
    export PEER_ARGS
    start_both
    compare mixed-adapters
    stop_node
    stop_peer
fi

"$bench" report "$results"
# Servers' logs name this machine's folders: they are no part of the results, and are shown only if something failed.
[ "$failed" -eq 0 ] || tail -n 20 "$work"/*.log >&2
exit "$failed"
