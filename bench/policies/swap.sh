#!/usr/bin/env bash
# A policy swapped each second for about a minute, under 8 clients that stream. Three nodes, one after the other,
# answer the same prompts: two keep their policy, the third swaps edf and fcfs. What is compared: failures,
# answers, and each step's time with the median of steps of its shape.
#
#   MODEL=model.gguf bench/policies/swap.sh
#
# By environment, beside what node.sh names:
#   ROUNDS       answers of each client                     (default: 6)
set -euo pipefail
source "$(dirname "$0")/node.sh"
out=$results/swap
mkdir -p "$out"

run_one() { # name, whether to swap
    start_node "$1" "${log_steps[@]}"
    # Both are compiled before: the cache on disk holds them from then on.
    serve_with fcfs
    serve_with edf
    if [ "$2" = yes ]; then
        while sleep 1; do serve_with fcfs; sleep 1; serve_with edf; done &
        swapper=$!
    fi
    "$bench" run chat --clients 8 --requests $((8 * ${ROUNDS:-6})) --seed 7 --url "$url" --name "$1" --out "$out/$1" \
        --title "swap: $1" --note "quern: $("$quern" --version)" \
        --note "$threads threads, $slots places, $ctx KV tokens; model file $(basename "$model")"
    if [ "$2" = yes ]; then
        kill "$swapper"
        wait "$swapper" 2>/dev/null || true
    fi
    verdicts >"$out/$1/policy.json"
    stop_node
    steps_of "$1" >"$out/$1/steps.csv"
}

run_one still no
run_one swapped yes
run_one still-again no

answers() { # name
    jq --raw-output 'select(.type == "request") | "\(.prompt_idx) \(.answer) \(.failure)"' "$out/$1/results.jsonl" | sort
}
compare() { # name: answers that differ from those of the first node
    diff <(answers still) <(answers "$1") | grep -c '^>' || true
}
# The longest step of a shape as a part of that shape's median: of all steps, and of the first ones after swaps.
longest() { # name
    awk -F, 'NR > 1 { shape = $1 "," $2; n[shape]++; ms[shape, n[shape]] = $3; after[shape, n[shape]] = $4 != last; last = $4 }
        END {
            for (shape in n) {
                if (n[shape] < 5) continue
                count = n[shape]
                for (i = 1; i <= count; i++) sorted[i] = ms[shape, i]
                for (i = 2; i <= count; i++) {
                    value = sorted[i]
                    for (j = i - 1; j > 0 && sorted[j] > value; j--) sorted[j + 1] = sorted[j]
                    sorted[j + 1] = value
                }
                median = sorted[int((count + 1) / 2)]
                for (i = 1; i <= count; i++) {
                    part = ms[shape, i] / median
                    steps++
                    if (part > all) all = part
                    if (after[shape, i]) { swaps++; sum += part; if (part > swapped) swapped = part }
                }
            }
            printf "%d steps in shapes seen five times or more; longest %.2f of its shape%s median", steps, all, "\047s"
            if (swaps) printf "; of %d that followed a swap: mean %.3f, longest %.2f", swaps, sum / swaps, swapped
            print ""
        }' "$out/$1/steps.csv"
}
{
    for name in still swapped still-again; do
        failed=$(jq 'select(.type == "request" and .failure != null)' "$out/$name/results.jsonl" | jq --slurp length)
        all=$(answers "$name" | wc -l)
        echo "$name: $failed of $all requests failed, $(compare "$name") answers differ from still's"
        echo "  $(awk -F, 'END { print $4 }' "$out/$name/steps.csv") swaps; $(longest "$name")"
    done
} | tee "$out/summary.txt"
