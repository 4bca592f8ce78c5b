# Quern's few commands. Everything is built in one profile, release, so that the
# heavy dependencies are built once for the binary, the tests and the lints.

BIN := $(or $(CARGO_TARGET_DIR),target)/release
# More arguments for `make serve`: make serve ARGS='--model qwen3-0.6b-q8_0'
ARGS ?=
# What `make bench` drives, and with what.
URL ?= http://127.0.0.1:8080
WORKLOAD ?= chat

.PHONY: help deps build guests serve test lint bench policy-plots clean

help:            ## Show these lines
	@sed -n 's/^\([a-z-]*\): .*## /  make \1\t/p; s/^\([a-z-]*\):  *## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

deps:            ## Install what the system lacks (apt), and check for Rust
	@.ci/deps

# Examples bring in what tests ask of the crates below: without them, tests would
# have most of those crates built a second time.
build: deps      ## Build target/release/quern and quern-bench
	cargo build --release --workspace --bins --examples

guests: deps     ## Build the policies for WebAssembly: target/guests/NAME.wasm
	@extensions/build-guests

serve: build     ## Build, fetch the default model, serve it on 127.0.0.1:8080
	$(BIN)/quern serve --first-curl $(ARGS)

test: build guests  ## Run every test that needs no GPU, the default model's among them
	@.ci/test

lint: deps       ## Check formatting, clippy's warnings, the rules between crates, and browsers' build
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	@.ci/rules
	@.ci/browser

bench: build     ## Drive a running node: make bench WORKLOAD=chat URL=http://127.0.0.1:8080
	$(BIN)/quern-bench run $(WORKLOAD) --url $(URL)

policy-plots: build guests  ## Draw each policy's plot.svg again: extensions/policies/*/plot.svg
	extensions/policies/plots

clean:           ## Remove what was built; fetched models stay
	cargo clean
