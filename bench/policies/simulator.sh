#!/usr/bin/env bash
# How far the simulator is from this machine: costs are fitted to the steps of one load, other loads are served by
# the real node and, arrival by arrival, by the simulator with these costs.
#
#   MODEL=model.gguf bench/policies/simulator.sh
#
# By environment, beside what node.sh names:
#   RATES        requests a second of the loads that are compared   (default: 0.5 1.0)
#   DURATION_S   how long requests arrive                           (default: 80)
#   POLICY_TOOL  the command                                        (default: $QUERN policy)
set -euo pipefail
source "$(dirname "$0")/node.sh"
read -ra tool <<<"${POLICY_TOOL:-$quern policy}"
read -ra rates <<<"${RATES:-0.5 1.0}"
out=$results/simulator
mkdir -p "$out"
note=(--note "quern: $("$quern" --version)"
    --note "$threads threads, $slots places, $ctx KV tokens; model file $(basename "$model")")

start_node fit "${log_steps[@]}"
"$bench" run "$here/sixteen.toml" --clients 4,16 --url "$url" --name quern --out "$out/fit" "${note[@]}"
stop_node
steps_of fit >"$out/fit/steps.csv"
"${tool[@]}" fit "$out/fit/steps.csv" --costs-out "$out/costs.json" | tee "$out/summary.txt"

# Tokens that every prompt of the load begins with, which the cache holds from the first request on.
cached_tokens() {
    local n body
    for n in 1 2; do
        body=$(jq --null-input --arg n "$n" --arg model "$(curl --silent "$url/v1/models" | jq --raw-output '.data[0].id')" \
            '{model: $model, max_tokens: 1, messages: [{role: "user", content: "\($n) is a number"}]}')
        body=$(curl --silent --header content-type:application/json --data "$body" "$url/v1/chat/completions")
    done
    jq '.usage.prompt_tokens_details.cached_tokens // 0' <<<"$body"
}

for rate in "${rates[@]}"; do
    name=rate-$rate
    start_node "$name" "${log_steps[@]}"
    cached=$(cached_tokens)
    "$bench" run "$here/mixed.toml" --rates "$rate" --duration "${DURATION_S:-80}" --url "$url" --name quern \
        --out "$out/$name" "${note[@]}"
    stop_node
    steps_of "$name" >"$out/$name/steps.csv"
    jq --raw-output --argjson cached "$cached" 'select(.type == "request" and .failure == null)
        | [1000 * .intended_s, .prompt_tokens, $cached, .tokens] | @csv' "$out/$name/results.jsonl" |
        { echo at_ms,prompt,cached,max_new; cat; } >"$out/$name/trace.csv"
    "${tool[@]}" simulate builtin --trace "$out/$name/trace.csv" --costs "$out/costs.json" --max-running "$slots" \
        --kv-capacity "$ctx" --json >"$out/$name/simulated.json"
    jq --slurp --raw-output --slurpfile simulated "$out/$name/simulated.json" --arg name "$name" '
        (.[] | select(.type == "phase")) as $real | $simulated[0].policies[0] as $sim
        | [["TTFT p50, ms", $real.ttft.p50_ms, $sim.ttft_p50_ms], ["TTFT p95, ms", $real.ttft.p95_ms, $sim.ttft_p95_ms],
           ["TBT p50, ms", $real.tbt.p50_ms, $sim.tbt_p50_ms], ["TBT p95, ms", $real.tbt.p95_ms, $sim.tbt_p95_ms],
           ["tokens/s", $real.tokens_per_s, $sim.tokens_per_second]][]
        | "\($name) \(.[0]): real \(.[1] * 10 | round / 10), simulated \(.[2] * 10 | round / 10), error \((.[2] / .[1] - 1) * 1000 | round / 10) %"' \
        "$out/$name/results.jsonl" | tee -a "$out/summary.txt"
done
