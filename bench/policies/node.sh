# What the measurements in this folder share beside ../node.sh; to be sourced. The node has one empty place for a
# policy, and this changes what serves there.
#
# By environment, beside what ../node.sh names:
#   GUESTS       folder of built policies                  (default: target/guests)
# shellcheck shell=bash disable=SC2034,SC2154  # Variables come from ../node.sh, and go to those who read this in.

source "$(dirname "${BASH_SOURCE[0]}")/../node.sh"
guests=$(realpath "${GUESTS:-${CARGO_TARGET_DIR:-$root/target}/guests}")

cat >"$work/node.toml" <<TOML
[[policy]]
name = "scheduler"
hooks = ["scheduler", "feedback"]
TOML

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
