# What measurements on a running node share; to be sourced. Starts a node, and ends it with the script.
#
# By environment:
#   MODEL        the GGUF file                             (required)
#   THREADS      threads of the node                       (default: all cores)
#   SLOTS, CTX   sequences at once, tokens of state        (default: 16, 16384)
#   QUERN        the binary                                (default: target/release/quern)
#   QUERN_BENCH  the binary                                (default: target/release/quern-bench)
#   RESULTS      where results go                          (default: bench/results/<date>-<folder of the script>)
#   PORT         first of the two ports used               (default: 18080)
# shellcheck shell=bash disable=SC2034  # What is set here is used by those who read it in.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${MODEL:?set MODEL to a GGUF file}
threads=${THREADS:-$(nproc)}
slots=${SLOTS:-16}
ctx=${CTX:-16384}
quern=${QUERN:-${CARGO_TARGET_DIR:-$root/target}/release/quern}
bench=${QUERN_BENCH:-${CARGO_TARGET_DIR:-$root/target}/release/quern-bench}
here=$(cd "$(dirname "$0")" && pwd)
results=${RESULTS:-$root/bench/results/$(date -u +%F)-$(basename "$here")}
port=${PORT:-18080}
url=http://127.0.0.1:$port
admin=http://127.0.0.1:$((port + 1))
work=$(mktemp -d)
node_pid=

mkdir -p "$results"
: >"$work/node.toml"

stop_node() {
    [ -z "$node_pid" ] || { kill "$node_pid" && wait "$node_pid"; } 2>/dev/null || true
    node_pid=
}
clean_up() {
    stop_node
    rm -rf "$work"
}
trap clean_up EXIT

wait_ready() { # address, pid, log
    for _ in $(seq 600); do
        curl --silent --fail --output /dev/null "$1" && return
        kill -0 "$2" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$3" >&2
    exit 1
}

node_command=()
name_node_command() { # further switches; the command serves $model with the settings of $work/node.toml
    node_command=("$quern" serve --config "$work/node.toml" --model "$model" --listen "127.0.0.1:$port"
        --admin-listen "127.0.0.1:$((port + 1))" --threads "$threads" --threads-prefill "$threads"
        --max-running "$slots" --kv-capacity "$ctx" "$@")
}

start_node() { # name of its log, further switches
    local log=$work/$1.log
    shift
    name_node_command "$@"
    "${node_command[@]}" >"$log" 2>&1 &
    node_pid=$!
    wait_ready "$admin/ready" "$node_pid" "$log"
}
