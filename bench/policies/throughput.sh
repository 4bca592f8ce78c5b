#!/usr/bin/env bash
# What a policy costs a busy node: tokens a second with the built-in scheduler and with policies, in one process
# that changes what serves between phases, A B A B.
#
#   MODEL=model.gguf bench/policies/throughput.sh [POLICY...]      (default: edf)
#
# By environment, beside what node.sh names:
#   ROUNDS       how often each is measured                 (default: 6)
set -euo pipefail
source "$(dirname "$0")/node.sh"
policies=("$@")
[ $# -gt 0 ] || policies=(edf)

start_node throughput
servers=(--url "$url" --name builtin --prepare "$(serving builtin)")
for policy in "${policies[@]}"; do
    servers+=(--url "$url" --name "$policy" --prepare "$(serving "$policy")")
done
"$bench" run "$here/sixteen.toml" --rounds "${ROUNDS:-6}" "${servers[@]}" --out "$results/throughput" \
    --title "throughput with policies" --note "quern: $("$quern" --version)" \
    --note "$threads threads, $slots places, $ctx KV tokens; model file $(basename "$model")"
# Time in plans, as the node counts it: all phases together.
curl --silent "$admin/metrics" |
    grep -E '^quern_(plan|step)_duration_seconds_(sum|count)|^quern_policy_call' >"$results/throughput/metrics.txt"
