#!/usr/bin/env bash
# Builds ggml's CUDA plug-in on a machine with an NVIDIA GPU and measures quern there.
# UNPROVEN: no GPU was at hand when this was written. Strike this line when a run is recorded in bench/results.
#
#   run.sh pack      on the machine that built quern: gathers binaries and ggml's sources into PACK
#   run.sh measure   on the GPU machine, which needs nvcc, cmake and a C++ compiler, but neither cargo nor a network
#
# The plug-in is built from the very sources that llama-cpp-sys-2 vendors, so that it fits the carried libraries.
# Weights do not travel: synthetic models of the real shapes are as fast as real ones; their answers mean nothing.
#
# By environment:
#   PACK          the folder that travels                     (default: target/gpu-pack)
#   TARGET        pack: cargo's folder with the binaries      (default: target/release)
#   OUT           measure: where results go                   (default: bench/results/<date>-gpu)
#   MODELS        measure: where synthetic models are made    (default: PACK/models)
#   SHAPES        measure: models to make                     (default: qwen2.5-0.5b qwen2.5-7b)
#   CUDA_ARCH     measure: architecture                       (default: 90, Hopper)
#   CLIENTS       measure: levels of clients                  (default: 1,8,32)
#   PORT          measure: first of four ports                (default: 18080)
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
pack=${PACK:-$root/target/gpu-pack}

pack() {
    local target=${TARGET:-$root/target/release} sources
    sources=$(cd "$root" && cargo metadata --format-version 1 --locked |
        python3 -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "llama-cpp-sys-2":
        print(os.path.dirname(package["manifest_path"]))')
    rm -rf "$pack"
    mkdir -p "$pack/bin"
    cp "$target/quern" "$target/quern-bench" "$target"/*.so* "$target"/examples/{engine_bench,make_tiny} \
        "$target"/examples/{look,kernel_bench,matmul_bench,step_bench} "$pack/bin/"
    # Debug information would be most of the weight.
    strip --strip-debug "$pack"/bin/*
    tar -czf "$pack/ggml.tar.gz" -C "$sources/llama.cpp" ggml LICENSE
    du -sh "$pack"
}

build_plugin() {
    local build=$pack/build
    [ -f "$pack/bin/libggml-cuda.so" ] && return
    tar -xzf "$pack/ggml.tar.gz" -C "$pack"
    # The crate leaves this template out; the plug-in does not need what is made of it.
    touch "$pack/ggml/ggml.pc.in"
    cmake -S "$pack/ggml" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON \
        -DGGML_NATIVE=OFF -DGGML_CPU=OFF -DGGML_CUDA=ON -DGGML_CUDA_NCCL=OFF \
        -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-90}" -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF
    cmake --build "$build" --parallel "$(nproc)" --target ggml-cuda
    find "$build" -name 'libggml-cuda.so' -exec cp {} "$pack/bin/" \;
}

server_pids=()
stop_servers() {
    local pid
    for pid in "${server_pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    server_pids=()
}

# Starts quern with a model and waits until it can serve a token.
start_server() { # model, log, port, further switches
    local model=$1 log=$2 port=$3
    shift 3
    "$pack/bin/quern" serve --model "$model" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 1))" \
        --kv-capacity 65536 "$@" >"$log" 2>&1 &
    server_pids+=($!)
    for _ in $(seq 300); do
        curl --silent --fail --output /dev/null "http://127.0.0.1:$((port + 1))/ready" && return
        kill -0 "${server_pids[-1]}" 2>/dev/null || break
        sleep 0.2
    done
    echo "run.sh: quern is not ready: see $log" >&2
    return 1
}

# Steps and kernels of the WGSL engine by themselves, and the engine beside llama.cpp's on the same card.
measure_wgsl() { # shape, model, out
    local shape=$1 model=$2 out=$3 port=${PORT:-18080} failed=0
    for cooperative in 0 1; do
        "$pack/bin/step_bench" "$model" prefill=512 context=512 runs=20 "cooperative=$cooperative" \
            >"$out/$shape-wgsl-steps-cooperative-$cooperative.txt" 2>&1 || failed=1
    done
    start_server "$model" "$out/$shape-wgsl.log" $((port + 2)) --engine wgsl --set engine.wgsl.kv_capacity=65536 ||
        return 1
    "$pack/bin/quern-bench" run chat --url "http://127.0.0.1:$((port + 2))" --name wgsl --rounds 3 --any-answer \
        --url "http://127.0.0.1:$port" --name llama.cpp --clients "${CLIENTS:-1,8,32}" \
        --title "chat, $shape, WGSL engine beside llama.cpp's" --note "synthetic weights" \
        --note "$(tail -n 1 "$out/gpu.csv")" --out "$out/$shape-wgsl-chat" || failed=1
    return "$failed"
}

measure() {
    local out=${OUT:-$root/bench/results/$(date -u +%F)-gpu} models=${MODELS:-$pack/models} shape workload
    local url=http://127.0.0.1:${PORT:-18080} failed=0
    mkdir -p "$out" "$models"
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv >"$out/gpu.csv"
    build_plugin
    {
        "$pack/bin/look"
        "$pack/bin/kernel_bench"
        "$pack/bin/matmul_bench"
    } >"$out/wgsl-kernels.txt" 2>&1 || failed=1
    for shape in ${SHAPES:-qwen2.5-0.5b qwen2.5-7b}; do
        local model=$models/$shape.gguf
        [ -f "$model" ] || "$pack/bin/make_tiny" --shape "$shape" "$model"
        "$pack/bin/engine_bench" "$model" kv=65536 sequences=64 >"$out/$shape-engine.txt" 2>&1 || failed=1
        start_server "$model" "$out/$shape-quern.log" "${PORT:-18080}"
        for workload in chat intents long-prompt; do
            local levels=(--clients "${CLIENTS:-1,8,32}")
            [ "$workload" = long-prompt ] && levels=()
            # Random weights may end an answer at any token: only failed requests fail the run.
            "$pack/bin/quern-bench" run "$workload" --url "$url" --name quern --rounds 3 --any-answer "${levels[@]}" \
                --title "$workload, $shape" --note "$(tail -n 1 "$out/gpu.csv")" --note "synthetic weights" \
                --out "$out/$shape-$workload" || failed=1
        done
        measure_wgsl "$shape" "$model" "$out" || failed=1
        stop_servers
    done
    "$pack/bin/quern-bench" report "$out"
    return "$failed"
}

trap stop_servers EXIT
case "${1:-}" in
pack) pack ;;
measure) measure ;;
*)
    sed -n '2,21s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
