#!/usr/bin/env bash
# What everything but computing costs while 16 clients stream: scheduling and sampling from the node's own
# histograms, HTTP from the CPU time of its threads. Prints a table, and keeps it in bench/results/<date>-overhead/.
#
#   MODEL=/path/to/model.gguf bench/overhead.sh
#
# By environment: CLIENTS (default 16), THREADS (all cores), QUERN, QUERN_BENCH (default target/release/…),
# QUERN_ARGS (further switches of `quern serve`), RESULTS (default bench/results), PORT (first of two, 18090).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
model=${MODEL:?set MODEL to a GGUF file}
clients=${CLIENTS:-16}
threads=${THREADS:-$(nproc)}
target=${CARGO_TARGET_DIR:-$root/target}
quern=${QUERN:-$target/release/quern}
bench=${QUERN_BENCH:-$target/release/quern-bench}
out=${RESULTS:-$root/bench/results}/$(date -u +%F)-overhead
port=${PORT:-18090}
read -ra quern_args <<<"${QUERN_ARGS:-}"
work=$(mktemp -d)

"$quern" serve --model "$model" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 1))" \
    --threads "$threads" --threads-prefill "$threads" --max-running "$clients" "${quern_args[@]}" \
    >"$work/quern.log" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true' EXIT
for _ in $(seq 600); do
    curl --silent --fail --output /dev/null "http://127.0.0.1:$((port + 1))/ready" && break
    kill -0 "$pid" 2>/dev/null || { echo "overhead.sh: no node: see $work/quern.log" >&2; exit 1; }
    sleep 0.1
done

# Clock ticks that threads of these names have computed, or all others' with "not" before the name.
ticks() { # [not] name
    local want=1 name=$1 total=0 task comm
    [ "$1" = not ] && { want=0; name=$2; }
    for task in "/proc/$pid/task"/*; do
        comm=$(<"$task/comm")
        if { [ "$comm" = "$name" ] && [ $want -eq 1 ]; } || { [ "$comm" != "$name" ] && [ $want -eq 0 ]; }; then
            # Fields 14 and 15, behind a name that may hold spaces.
            total=$((total + $(sed 's/.*) //' "$task/stat" | awk '{print $12 + $13}')))
        fi
    done
    echo "$total"
}
metric() { curl --silent "http://127.0.0.1:$((port + 1))/metrics" | awk -v name="$1" '$1 == name {print $2}'; }

# So that threads and pages are there before anything is counted.
"$bench" run chat --clients "$clients" --rounds 1 --requests 16 --out "$work/warm" --url "http://127.0.0.1:$port" --name quern >/dev/null
before=("$(ticks quern-step)" "$(ticks not quern-step)" "$(metric quern_step_duration_seconds_sum)"
    "$(metric quern_step_overhead_seconds_sum)" "$(metric quern_step_duration_seconds_count)")
"$bench" run chat --clients "$clients" --rounds 1 --out "$work/run" --url "http://127.0.0.1:$port" --name quern >/dev/null
after=("$(ticks quern-step)" "$(ticks not quern-step)" "$(metric quern_step_duration_seconds_sum)"
    "$(metric quern_step_overhead_seconds_sum)" "$(metric quern_step_duration_seconds_count)")

mkdir -p "$out"
{
    echo "# What is not computing, at $clients clients"
    echo
    echo "$(date -u +%F), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $threads threads;" \
        "model file $(basename "$model"). Command: \`MODEL=… bench/overhead.sh\`."
    echo
    paste <(printf '%s\n' "${before[@]}") <(printf '%s\n' "${after[@]}") | awk -v threads="$threads" '
        { delta[NR] = $2 - $1 }
        END {
            print "| | share |\n|---|---:|"
            printf "| steps counted | %d |\n| mean step ms | %.1f |\n", delta[5], 1000 * delta[3] / delta[5]
            printf "| scheduling and sampling, of a step | %.2f %% |\n", 100 * delta[4] / delta[3]
            printf "| HTTP, text and all other threads, of the CPU time | %.2f %% |\n", 100 * delta[2] / (delta[1] + delta[2])
        }'
} | tee "$out/REPORT.md"
rm -r "$work"
