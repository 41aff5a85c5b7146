#!/usr/bin/env bash
# Runs each target of the fuzzer for SECONDS_EACH (60) seconds; FUZZ=NAME one of them. The corpus stays under
# target/fuzz/corpus; what is found is written to tests/fuzz/found and makes this fail.
#
# The coverage that guides it is a pass of the stable compiler; an address sanitizer is not needed where `unsafe` is forbidden.
set -euo pipefail
cd "$(dirname "$0")/.."

flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts and macros are not instrumented.
RUSTFLAGS=$flags cargo build --locked --release --target "$host" --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz
program=target/fuzz/$host/release/hubless-fuzz

failed=0
for target in ${FUZZ:-gate wire replica txt socket import}; do
    corpus=target/fuzz/corpus/$target found=tests/fuzz/found/$target
    mkdir -p "$corpus" "$found"
    echo "fuzz: $target"
    started=$SECONDS
    FUZZ=$target FUZZ_CORPUS=$corpus "$program" "$corpus" "$found" -max_total_time="${SECONDS_EACH:-60}" -max_len=8192 \
        -rss_limit_mb=1024 -timeout=10 -artifact_prefix="$found/" -print_final_stats=1 2>"target/fuzz/$target.log" || {
        failed=$((failed + 1))
        tail -40 "target/fuzz/$target.log"
    }
    grep -E 'stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' "target/fuzz/$target.log" || true
    rmdir --ignore-fail-on-non-empty -p "$found"
    printf '{"what":"fuzz: %s","count":%d,"failures":%d,"seed":null,"seconds":%d,"commit":"%s"}\n' "$target" \
        "$(sed -n 's/^stat::number_of_executed_units: *//p' "target/fuzz/$target.log" | tail -1)" "$((failed > 0))" \
        $((SECONDS - started)) "$(git describe --always --abbrev=40 --exclude='*' --dirty)" >>target/soak.jsonl
done
[[ $failed -eq 0 ]]
