#!/usr/bin/env bash
# Intents by a classification head, in several formats of one model, beside llama-server, which is asked for the
# same labels through its chat endpoint. Every server is started anew for each of its turns; 8 clients, texts of a
# CSV file, one in a request and 32 in a request.
#
#   MODEL=model.gguf ADAPTER=folder CSV=eval.csv bench/adapters/classify.sh [FORMAT...]
#                                                        (default: adapter Q4_0 Q8_0 BF16)
#
# `adapter` is MODEL with the adapter beside it; a format is MODEL with the adapter merged into it, stored so. By
# environment, beside what ../node.sh names:
#   ADAPTER      a classification adapter                  (required)
#   CSV          columns text,label                        (required)
#   ROUNDS       turns of each                             (default: 3)
#   REQUESTS     requests a turn, and 32 texts in a tenth  (default: 240)
#   PEER         0 leaves llama-server out                 (default: 1)
#   SETTINGS     further switches of `quern serve`
# and the PEER_ variables of ../peers/llama-server.sh, which must have built the peer before.
set -euo pipefail
source "$(dirname "$0")/../node.sh"
adapter=${ADAPTER:?set ADAPTER to the folder of an adapter}
csv=${CSV:?set CSV to a file with columns text,label}
formats=("$@")
[ $# -gt 0 ] || formats=(adapter Q4_0 Q8_0 BF16)
requests=${REQUESTS:-240}
read -ra settings <<<"${SETTINGS:-}"
out=$results/classify
base=$model
export PEER_PORT=$((port + 2)) PEER_THREADS=$threads PEER_SLOTS=${PEER_SLOTS:-8} PEER_CTX=$ctx

for format in "${formats[@]}"; do
    [ "$format" != adapter ] || continue
    [ -f "$work/merged.gguf" ] || "$quern" adapter merge "$base" "$adapter" --out "$work/merged.gguf"
    "$quern" quantize "$work/merged.gguf" "$work/intents.$format.gguf" "$format"
done
# The peer's chat takes one text.
sed 's/^texts = .*/texts = 32/; /^\[servers/,/^$/d' "$root/bench/workloads/classify.toml" >"$work/texts-32.toml"

ask() { # folder, name, workload, url, requests, further switches
    "$bench" run "$3" --csv "$csv" --clients 8 --requests "$5" --out "$1" --url "$4" --name "$2" "${@:6}" >/dev/null ||
        echo "classify.sh: $1 did not pass" >&2
}

measure() { # format, folder
    local named=()
    if [ "$1" = adapter ]; then
        model=$base
        start_node "$1" --adapter "intents=$adapter" "${settings[@]}"
        named=(--model intents)
    else
        model=$work/intents.$1.gguf
        start_node "$1" "${settings[@]}"
    fi
    ask "$2/1" "$1" classify "$url" "$requests" "${named[@]}"
    ask "$2/32" "$1" "$work/texts-32.toml" "$url" $((requests / 10)) "${named[@]}"
    stop_node
}

measure_peer() { # folder
    "$root/bench/peers/llama-server.sh" start "$base" >"$work/peer.log" 2>&1 &
    node_pid=$!
    wait_ready "http://127.0.0.1:$PEER_PORT/health" "$node_pid" "$work/peer.log"
    # Each of its slots has the shared prompt before counting begins.
    ask "$1" llama-server intents "http://127.0.0.1:$PEER_PORT" $((requests / 4)) --warmup $((2 * PEER_SLOTS))
    stop_node
}

per_second() { # folder: requests each second
    jq --slurp --raw-output '[.[] | select(.type == "phase")] | last | .requests_per_s' "$1/results.jsonl"
}

for round in $(seq "${ROUNDS:-3}"); do
    for format in "${formats[@]}"; do
        measure "$format" "$out/$round-$format"
        echo "round $round, $format: $(per_second "$out/$round-$format/1") requests/s of one text," \
            "$(per_second "$out/$round-$format/32") of 32"
    done
    [ "${PEER:-1}" = 0 ] || {
        measure_peer "$out/$round-llama-server"
        echo "round $round, llama-server: $(per_second "$out/$round-llama-server") requests/s"
    }
done | tee "$out.txt"
