#!/usr/bin/env bash
# Requests with deadlines at one and a half times what the node can do: how many are met with each policy. One
# process that changes what serves between phases.
#
#   MODEL=model.gguf bench/policies/deadlines.sh [POLICY...]       (default: fcfs edf)
#
# By environment, beside what node.sh names:
#   LOAD         arrivals as a multiple of what the node can do    (default: 1.5)
#   ROUNDS       how often each is measured                        (default: 2)
set -euo pipefail
source "$(dirname "$0")/node.sh"
policies=("$@")
[ $# -gt 0 ] || policies=(fcfs edf)
out=$results/deadlines

start_node deadlines
# What the node can do: the same requests without deadlines, as many clients as places.
sed '/^\[deadline\]/,/^$/d; /^mode/,/^warmup/d; s/^\[load\]/[load]\nmode = "closed"\nclients = [16]\nrequests_per_client = 2/' \
    "$here/deadlines.toml" >"$work/capacity.toml"
"$bench" run "$work/capacity.toml" --url "$url" --name builtin --out "$out/capacity"
capacity=$(jq 'select(.type == "phase") | .requests_per_s' "$out/capacity/results.jsonl")
rate=$(awk "BEGIN { printf \"%.3f\", ${LOAD:-1.5} * $capacity }")

servers=()
for policy in "${policies[@]}"; do
    servers+=(--url "$url" --name "$policy" --prepare "$(serving "$policy")")
done
"$bench" run "$here/deadlines.toml" --rates "$rate" --rounds "${ROUNDS:-2}" "${servers[@]}" --out "$out/load" \
    --note "capacity: $capacity requests/s; $threads threads, $slots places; model file $(basename "$model")"
for policy in "${policies[@]}"; do
    jq --slurp --raw-output --arg policy "$policy" '[.[] | select(.type == "request" and .server == $policy)]
        | "\($policy): \([.[] | select(.failure == null and .e2e_ms <= .deadline_ms)] | length) of \(length) deadlines met, \([.[] | select(.failure != null)] | length) dropped"' \
        "$out/load/results.jsonl"
done | tee "$out/summary.txt"
