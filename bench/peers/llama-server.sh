#!/usr/bin/env bash
# Builds and starts the peer that we measure against: llama.cpp's own server and benchmark tools.
#
#   llama-server.sh build              fetch the source package, build llama-server, llama-bench, llama-batched-bench
#   llama-server.sh start MODEL.gguf   run llama-server in the foreground on PEER_PORT
#
# Everything stays under PEER_DIR, outside this repository. By environment:
#   PEER_DIR       where sources and build go        (default: ${XDG_CACHE_HOME:-~/.cache}/quern/peer)
#   PEER_JOBS      parallel compile jobs             (default: all cores)
#   PEER_CMAKE     further cmake switches            (for example -DGGML_CUDA=ON)
#   PEER_PORT      port on 127.0.0.1                 (default: 8081)
#   PEER_THREADS   threads, for decode and prefill   (default: all cores)
#   PEER_SLOTS     requests served at once           (default: 8)
#   PEER_CTX       KV capacity in tokens, all slots  (default: 16384)
#   PEER_ARGS      further llama-server switches
set -euo pipefail

package=llama-cpp-python
version=0.3.36
peer_dir=${PEER_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/quern/peer}
sources=$peer_dir/llama_cpp_python-$version
build=$peer_dir/build

fetch() {
    mkdir -p "$peer_dir"
    [ -d "$sources/vendor/llama.cpp" ] && return
    # pip would prepare the package's metadata by building it: the tools it asks for are not needed to unpack it.
    local archive=$peer_dir/llama_cpp_python-$version.tar.gz
    [ -f "$archive" ] || python3 -m pip download --no-deps --no-binary="$package" --dest "$peer_dir" "$package==$version"
    tar -xzf "$archive" -C "$peer_dir"
}

build() {
    fetch
    # Native code for this machine's CPU, and nothing that needs the network: no web UI, no TLS.
    # shellcheck disable=SC2086  # PEER_CMAKE holds several switches.
    cmake -S "$sources/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF ${PEER_CMAKE:-}
    cmake --build "$build" --parallel "${PEER_JOBS:-$(nproc)}" --target llama-server llama-bench llama-batched-bench
    echo "built: $build/bin"
}

start() {
    local threads=${PEER_THREADS:-$(nproc)}
    # shellcheck disable=SC2086  # PEER_ARGS holds several switches.
    exec "$build/bin/llama-server" --model "$1" --alias "$(basename "$1" .gguf)" --host 127.0.0.1 --port "${PEER_PORT:-8081}" \
        --threads "$threads" --threads-batch "$threads" --parallel "${PEER_SLOTS:-8}" \
        --ctx-size "${PEER_CTX:-16384}" ${PEER_ARGS:-}
}

case "${1:-}" in
build) build ;;
start) start "${2:?the path of a GGUF file is missing}" ;;
*)
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
