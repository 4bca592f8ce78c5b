#!/usr/bin/env bash
# One tenant sends ten times what each of three others sends: the others' time to first token beside it, and
# alone, with each policy. A load generator for each tenant; requests arrive at random.
#
#   MODEL=model.gguf bench/policies/tenants.sh [POLICY...]         (default: tenant-fair builtin)
#
# By environment, beside what node.sh names:
#   RATE         requests a second of each of the others     (default: 0.1)
#   DURATION_S   how long requests arrive                    (default: 120)
set -euo pipefail
source "$(dirname "$0")/node.sh"
policies=("$@")
[ $# -gt 0 ] || policies=(tenant-fair builtin)
rate=${RATE:-0.1}
out=$results/tenants

drive() { # folder, tenant, rate, seed
    sed "s/TENANT/$2/" "$here/tenant.toml" >"$work/$2.toml"
    "$bench" run "$work/$2.toml" --rates "$3" --duration "${DURATION_S:-120}" --seed "$4" --url "$url" --name "$2" \
        --out "$1/$2" >/dev/null || echo "tenants.sh: $1/$2 did not pass" >&2
}

ttft_ms() { # folder, quantile
    jq --slurp "[.[] | select(.type == \"request\" and .server != \"flood\" and .ttft_ms != null) | .ttft_ms] | sort
        | .[(length * $2 | floor)]" "$1"/*/results.jsonl
}

others() { # folder
    for tenant in 1 2 3; do drive "$1" "t$tenant" "$rate" $((100 + tenant)) & pids+=($!); done
}

start_node tenants
mkdir -p "$out"
for policy in "${policies[@]}"; do
    serve_with "$policy"
    pids=()
    others "$out/$policy/alone"
    wait "${pids[@]}"
    pids=()
    others "$out/$policy/beside"
    drive "$out/$policy/beside" flood "$(awk "BEGIN { print 10 * $rate }")" 99 & pids+=($!)
    wait "${pids[@]}"
    alone=$(ttft_ms "$out/$policy/alone" 0.95)
    beside=$(ttft_ms "$out/$policy/beside" 0.95)
    awk -v p="$policy" -v a="$alone" -v b="$beside" -v r="$rate" 'BEGIN {
        printf "%s: others at %s requests/s each: p95 to first token %.0f ms alone, %.0f ms beside the flood: %.2f times\n", p, r, a, b, b / a }'
done | tee "$out/summary.txt"
