# hubless: all there is to do here, with the set-up included. `make help` lists it.
#
# Tests read these from the environment:
#   COUNT=N                 how often a test that counts repeats its claim, instead of its small default
#   HUBLESS_SOAK=1          the large counts (and the long outages)
#   HUBLESS_SOAK_FILE=FILE  append a JSON line for each claim: {"what","count","failures","seed","seconds","commit"}
#   HUBLESS_COMMIT=HASH     what these lines say as the commit
# They need Linux and may make network namespaces: run them as root, or as root of a user namespace (`make help` says how).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Optimised, with assertions, and linked quickly: see `[profile.fast]` in Cargo.toml.
TEST := cargo test --locked --profile fast --features sim,mutants,fuzz,count
CLIPPY := cargo clippy --locked --all-targets
SUBSETS := history mdns web amqp redis tls cli sim mutants fuzz count

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  SOAK=NAME make soak      only the part NAME, or the tests whose names begin so"
	@echo "  make sim SEEDS=N         N seeds; SEED=N replays one"
	@echo "  Not root? unshare -rmn sh -c 'ip link set lo up; mount -t tmpfs none /run; make test'"

setup: ## Install what the tests need (asks first, unless root or CI=true)
	@tests/setup.sh

run: ## Build the binary and run a node; prints the URL of the page
	@cargo build --locked --release
	@target/release/hubless run

test: setup lint doc ## Everything that must hold, in at most 20 minutes
	$(TEST)
	@echo "make test: all of it passed"

lint: ## Format, clippy for every subset of features, licences and sources of the packages used
	cargo fmt --check
	$(CLIPPY) -- -D warnings
	$(CLIPPY) --no-default-features -- -D warnings
	@for subset in $(SUBSETS); do \
		echo "$(CLIPPY) --no-default-features --features $$subset -- -D warnings"; \
		$(CLIPPY) --no-default-features --features $$subset -- -D warnings; \
	done
	cd tests/bench && cargo fmt --check && $(CLIPPY) -- -D warnings
	cd tests/fuzz && cargo fmt --check && cargo metadata --locked --format-version 1 >/dev/null
	cargo deny --locked check licenses bans sources
	@if cargo deny fetch db >/dev/null 2>&1; then \
		echo "cargo deny --locked check advisories"; cargo deny --locked check advisories; \
	else \
		echo "advisories NOT checked: their database cannot be fetched from here"; \
	fi

fmt: ## Format the code
	cargo fmt
	@cd tests/bench && cargo fmt
	@cd tests/fuzz && cargo fmt

doc: ## Build the documentation; a broken link is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

sim: ## Run the simulator of the core (SEEDS=N seeds)
	$(TEST) --test simulation -- --nocapture

instructions: ## Count the instructions that each message takes, as a test does that limits them
	$(TEST) --test instructions -- --nocapture

scale: ## What a full mesh of 10, 50, 200 and 1,000 nodes costs, in minutes: target/scale (NODES="10 50", SEED=N)
	$(TEST) --test scale -- --ignored --nocapture

fuzz: ## Search for bytes that do harm, a minute for each target (SECONDS_EACH=N, FUZZ=NAME)
	@tests/fuzz.sh

soak: setup ## The large counts, for hours; goes on where it stopped (SOAK=NAME for one part)
	@tests/soak.sh

bench: ## Throughput, loss and round trip side by side with libzmq; the log beside the disk; bridges beside bare clients; 10,000 WebSockets
	@cd tests/bench && cargo run --locked --release
	@cd tests/bench && cargo run --locked --release -- durable
	@cd tests/bench && cargo run --locked --release -- bridges
	@cd tests/bench && cargo run --locked --release -- sockets

bench-peers: ## hubless beside libzmq, zenoh, Redis and NATS, half an hour: target/bench/results.json, a table, a chart
	@tests/setup.sh nats-server
	@cd tests/bench && cargo run --locked --release -- peers

bench-save: ## Keep a dated copy of what bench-peers measured, in tests/bench/results
	@mkdir -p tests/bench/results
	@for kind in json md svg; do cp target/bench/results.$$kind tests/bench/results/$$(date +%F).$$kind; done

clean: ## Remove what was built, the tests' own set-up included
	@rm -rf target tests/bench/target tests/web/node_modules examples/interop/node_modules

.PHONY: help setup run test lint fmt doc sim scale instructions fuzz soak bench bench-peers bench-save clean
