# What the measurements in this folder share; to be sourced. Starts a node with one empty place for a policy,
# and changes what serves there.
#
# By environment:
#   MODEL        the GGUF file                             (required)
#   GUESTS       folder of built policies                  (default: target/guests)
#   THREADS      threads of the node                       (default: all cores)
#   SLOTS, CTX   sequences at once, tokens of state        (default: 16, 16384)
#   QUERN        the binary                                (default: target/release/quern)
#   QUERN_BENCH  the binary                                (default: target/release/quern-bench)
#   RESULTS      where results go                          (default: bench/results/<date>-policies)
#   PORT         first of the two ports used               (default: 18080)
# shellcheck shell=bash disable=SC2034  # What is set here is used by those who read it in.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
model=${MODEL:?set MODEL to a GGUF file}
guests=$(realpath "${GUESTS:-${CARGO_TARGET_DIR:-$root/target}/guests}")
threads=${THREADS:-$(nproc)}
slots=${SLOTS:-16}
ctx=${CTX:-16384}
quern=${QUERN:-${CARGO_TARGET_DIR:-$root/target}/release/quern}
bench=${QUERN_BENCH:-${CARGO_TARGET_DIR:-$root/target}/release/quern-bench}
results=${RESULTS:-$root/bench/results/$(date -u +%F)-policies}
port=${PORT:-18080}
url=http://127.0.0.1:$port
admin=http://127.0.0.1:$((port + 1))
here=$root/bench/policies
work=$(mktemp -d)
node_pid=

mkdir -p "$results"
cat >"$work/node.toml" <<TOML
[[policy]]
name = "scheduler"
hooks = ["scheduler", "feedback"]
TOML

stop_node() {
    [ -z "$node_pid" ] || { kill "$node_pid" && wait "$node_pid"; } 2>/dev/null || true
    node_pid=
}
clean_up() {
    stop_node
    rm -rf "$work"
}
trap clean_up EXIT

start_node() { # name of its log, further switches
    local log=$work/$1.log
    shift
    "$quern" serve --config "$work/node.toml" --model "$model" --listen "127.0.0.1:$port" \
        --admin-listen "127.0.0.1:$((port + 1))" --threads "$threads" --threads-prefill "$threads" \
        --max-running "$slots" --kv-capacity "$ctx" "$@" >"$log" 2>&1 &
    node_pid=$!
    for _ in $(seq 600); do
        curl --silent --fail --output /dev/null "$admin/ready" && return
        kill -0 "$node_pid" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$log" >&2
    exit 1
}

# Commands for a shell: what serves from now on. `builtin` empties the place.
serving() { # policy
    if [ "$1" = builtin ]; then
        echo "curl --silent --output /dev/null --request DELETE $admin/v1/policies/scheduler"
    else
        echo "curl --silent --show-error --fail --output /dev/null --header content-type:application/wasm" \
            "--data-binary @$guests/$1.wasm $admin/v1/policies/scheduler/load"
    fi
}
serve_with() { # policy
    sh -c "$(serving "$1")"
}

# Calls of the place's policy by verdict, and how long they took.
verdicts() {
    curl --silent "$admin/v1/policies/scheduler"
}

# Steps as the node logged them, with how many changes of policy came before each.
log_steps=(--log-format json --log-level 'info,quern_scheduler=trace')
steps_of() { # name of the log
    echo rows,outputs,took_us,swaps
    jq --raw-input --raw-output 'fromjson? | (.fields // .) as $f
        | if $f.message == "policy loaded" then "swap"
          elif $f.message == "step" then "step \($f.rows) \($f.outputs) \($f.took)"
          else empty end' "$work/$1.log" |
        awk '$1 == "swap" { swaps++; next }
            { us = $4 + 0; if ($4 ~ /ms$/) us *= 1e3; else if ($4 ~ /[0-9]s$/) us *= 1e6
              print $2 "," $3 "," us "," swaps + 0 }'
}
