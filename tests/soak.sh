#!/usr/bin/env bash
# Runs the parts of the soak, one test program after the other, and writes target/soak.jsonl.
#
# A part is a file tests/NAME.rs that reads HUBLESS_SOAK. The programs append a line for each claim; this adds one for the
# whole part. A part that passed at this commit is not run again; with uncommitted changes every part is.
set -euo pipefail
cd "$(dirname "$0")/.."

results=$PWD/target/soak.jsonl
commit=$(git describe --always --abbrev=40 --exclude='*' --dirty)
mkdir -p target

if [[ -n ${SOAK:-} ]]; then
    [[ -f tests/$SOAK.rs ]] || { echo "error: no part $SOAK (tests/$SOAK.rs)" >&2; exit 2; }
    parts=("$SOAK")
else
    mapfile -t parts < <(grep -lE 'HUBLESS_SOAK|soak::' tests/*.rs | sed 's|tests/||; s|\.rs$||')
fi

failed=0
for part in "${parts[@]}"; do
    if [[ $commit != *-dirty ]] && grep -qsF "{\"what\":\"part $part\",\"count\":1,\"failures\":0," <(grep -F "$commit" "$results" 2>/dev/null); then
        echo "soak: $part passed at this commit before"
        continue
    fi
    echo "soak: $part"
    started=$SECONDS
    failures=0
    HUBLESS_SOAK=1 HUBLESS_SOAK_FILE=$results HUBLESS_COMMIT=$commit \
        cargo test --locked --profile fast --features sim,mutants --test "$part" -- --nocapture || failures=1
    printf '{"what":"part %s","count":1,"failures":%d,"seed":null,"seconds":%d,"commit":"%s"}\n' \
        "$part" "$failures" $((SECONDS - started)) "$commit" >>"$results"
    failed=$((failed + failures))
done

echo "soak: ${#parts[@]} parts, $failed failed; $results"
[[ $failed -eq 0 ]]
