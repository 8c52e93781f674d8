# Two commands do all the set-up: `make quickstart` and `make test`.

export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: setup build quickstart test lint consumers bench

setup:
	tools/setup

build: setup
	cargo build --release --locked

quickstart: build
	target/release/superbatch run pipelines/quickstart.toml -o runs/quickstart

test: setup
	cargo test --release --locked

lint: setup
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- --deny warnings

consumers: build
	tests/consumers/run
	tests/consumers/parity

bench: setup
	benches/run
