#!/usr/bin/env bash
# Many adapters on one base: requests spread over 64 names by Zipf's law, beside the same requests for one of them,
# in turn, with several ways to serve them.
#
#   MODEL=model.gguf ADAPTER=folder CSV=eval.csv bench/adapters/mixed.sh [WAY...]
#                                          (default: quantum-1 quantum-4 quantum-16 quantum-64 workers-2)
#
# `quantum-N` serves an adapter for N steps in a row while others have work; `workers-N` has N contexts on one model,
# with a part of the threads each and the default quantum; `cached-N` keeps N tokens that nobody is at work on, and lets
# the engine hold 160 sequences, so that there are enough for them. By environment, beside what ../node.sh names:
#   ADAPTER      the adapter that all names stand for      (required)
#   CSV          columns text,label                        (required)
#   ROUNDS       turns of each                             (default: 2)
#   REQUESTS     requests a turn                           (default: 256)
#   CLIENTS      at once                                   (default: 8)
set -euo pipefail
source "$(dirname "$0")/../node.sh"
adapter=${ADAPTER:?set ADAPTER to the folder of an adapter}
csv=${CSV:?set CSV to a file with columns text,label}
ways=("$@")
[ $# -gt 0 ] || ways=(quantum-1 quantum-4 quantum-16 quantum-64 workers-2)
out=$results/mixed
all_threads=$threads

many=$root/bench/workloads/mixed-adapters.toml
sed 's/^count = .*/count = 1/' "$many" >"$work/one.toml"
for n in $(seq 0 63); do
    printf '[[adapter]]\nname = "a%s"\npath = "%s"\n' "$n" "$(realpath "$adapter")"
done >"$work/adapters.toml"

start_way() { # way
    threads=$all_threads
    cp "$work/adapters.toml" "$work/node.toml"
    case $1 in
    quantum-*) printf '[adapters]\nquantum = %s\n' "${1#*-}" >>"$work/node.toml" ;;
    cached-*)
        printf '[engine.llama]\nmax_sequences = 160\n[scheduler]\nmax_cached = %s\n' "${1#*-}" >>"$work/node.toml"
        ;;
    workers-*)
        printf '[workers]\nstart = %s\nmax = %s\n' "${1#*-}" "${1#*-}" >>"$work/node.toml"
        threads=$((all_threads / ${1#*-} > 0 ? all_threads / ${1#*-} : 1))
        ;;
    esac
    start_node "$1"
}

ask() { # folder, workload
    "$bench" run "$2" --csv "$csv" --clients "${CLIENTS:-8}" --requests "${REQUESTS:-256}" --seed 7 --out "$1" \
        --url "$url" --name node >/dev/null || echo "mixed.sh: $1 did not pass" >&2
}

told() { # folder
    jq --slurp --raw-output '[.[] | select(.type == "phase")] | last
        | "\(.requests_per_s * 100 | round / 100) requests/s, end to end p50 \(.e2e.p50_ms | round) ms, p95 \(.e2e.p95_ms | round) ms"' \
        "$1/results.jsonl"
}

for round in $(seq "${ROUNDS:-2}"); do
    for way in "${ways[@]}"; do
        start_way "$way"
        for load in one mixed; do
            workload=$work/one.toml
            [ $load = one ] || workload=$many
            ask "$out/$round-$way-$load" "$workload"
            echo "round $round, $way, $load: $(told "$out/$round-$way-$load")"
            # Counted since the node started.
            curl --silent "$admin/metrics" >"$work/metrics"
            grep -E '^quern_(adapter_(loads|evictions)|prefix_cache|step_(rows|duration))' "$work/metrics" \
                >"$out/$round-$way-$load.metrics" || true
        done
        stop_node
    done
done | tee "$out.txt"
