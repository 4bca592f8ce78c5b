#!/usr/bin/env bash
# A policy swapped each second for about a minute, under 8 clients that stream. Three nodes, one after the other,
# answer the same prompts: two keep their policy, the third swaps edf and fcfs. What is compared: failures,
# answers, and each step's time with the median of steps of its shape.
#
# Sums of floating-point numbers depend on who shares a batch, and so on when each request happens to come: with 8
# clients, answers of two nodes differ without any swap. So two more nodes serve one client, without a target time
# for steps: every batch has the same shape in both, and there no answer may differ.
#
#   MODEL=model.gguf bench/policies/swap.sh
#
# By environment, beside what node.sh names:
#   ROUNDS       answers of each of 8 clients               (default: 6)
set -euo pipefail
source "$(dirname "$0")/node.sh"
out=$results/swap
rounds=${ROUNDS:-6}
mkdir -p "$out"

run_one() { # name, whether to swap, clients, requests of all, switches of the node
    local name=$1 swaps=$2 clients=$3 requests=$4
    shift 4
    start_node "$name" "${log_steps[@]}" "$@"
    # Both are compiled before: the cache on disk holds them from then on.
    serve_with fcfs
    serve_with edf
    if [ "$swaps" = yes ]; then
        while sleep 1; do serve_with fcfs; sleep 1; serve_with edf; done &
        swapper=$!
    fi
    "$bench" run chat --clients "$clients" --requests "$requests" --seed 7 --url "$url" \
        --name "$name" --out "$out/$name" --title "swap: $name" --note "quern: $("$quern" --version)" \
        --note "$threads threads, $slots places, $ctx KV tokens; model file $(basename "$model")" ||
        echo "swap.sh: $name did not pass" >&2
    if [ "$swaps" = yes ]; then
        kill "$swapper"
        wait "$swapper" 2>/dev/null || true
    fi
    verdicts >"$out/$name/policy.json"
    stop_node
    steps_of "$name" >"$out/$name/steps.csv"
}

run_one still no 8 $((8 * rounds))
run_one swapped yes 8 $((8 * rounds))
run_one still-again no 8 $((8 * rounds))
run_one one-still no 1 24 --target-step 0ms
run_one one-swapped yes 1 24 --target-step 0ms

answers() { # name
    jq --raw-output 'select(.type == "request") | "\(.prompt_idx) \(.answer) \(.failure)"' "$out/$1/results.jsonl" | sort
}
compare() { # name, name: answers of the second that differ from the first's
    diff <(answers "$1") <(answers "$2") | grep -c '^>' || true
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
    for pair in still:still swapped:still still-again:still one-still:one-still one-swapped:one-still; do
        name=${pair%:*} other=${pair#*:}
        failed=$(jq 'select(.type == "request" and .failure != null)' "$out/$name/results.jsonl" | jq --slurp length)
        all=$(answers "$name" | wc -l)
        echo "$name: $failed of $all requests failed, $(compare "$other" "$name") answers differ from $other's"
        echo "  $(awk -F, 'END { print $4 }' "$out/$name/steps.csv") swaps; $(longest "$name")"
    done
} | tee "$out/summary.txt"
