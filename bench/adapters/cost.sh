#!/usr/bin/env bash
# What a LoRA costs while tokens are written: one node that serves a model alone and with an adapter, and one that
# serves the model with the adapter merged into it, in the same format, asked in turn.
#
#   MODEL=model.gguf ADAPTER=folder bench/adapters/cost.sh
#
# By environment, beside what ../node.sh names:
#   ADAPTER      the adapter                               (required)
#   FORMAT       MODEL's format, for the merged model      (default: Q4_K_M)
#   ROUNDS       turns of each                             (default: 3)
set -euo pipefail
source "$(dirname "$0")/../node.sh"
adapter=$(realpath "${ADAPTER:?set ADAPTER to the folder of an adapter}")
format=${FORMAT:-Q4_K_M}
out=$results/cost
base=$model

"$quern" adapter merge "$base" "$adapter" --out "$work/merged-f16.gguf"
"$quern" quantize "$work/merged-f16.gguf" "$work/merged.gguf" "$format"
start_node base --model-id base --adapter "adapter=$adapter"
pids=("$node_pid")
base_url=$url
model=$work/merged.gguf
port=$((port + 2))
url=http://127.0.0.1:$port
admin=http://127.0.0.1:$((port + 1))
start_node merged --model-id merged
pids+=("$node_pid")
stop_node() {
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
}
"$bench" run "$here/decode.toml" --rounds "${ROUNDS:-3}" --out "$out" \
    --url "$base_url" --name base --model base \
    --url "$base_url" --name adapter --model adapter \
    --url "$url" --name merged --model merged \
    --note "$(basename "$base") alone, with $(basename "$adapter") beside it, and with it merged into $format"
