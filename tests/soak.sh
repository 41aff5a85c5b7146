#!/usr/bin/env bash
# Runs the parts of the soak, one program after the other, and writes target/soak.jsonl.
#
# A part is a file tests/NAME.rs that reads HUBLESS_SOAK, or `instructions`, `log`, `bench`, `peers` or `sockets`. Each claim has a line; this adds one for the whole
# part. A part that passed at this commit is not run again; with uncommitted changes every part is. With COUNT, which asks
# for other counts than the large ones, no part counts as passed. SOAK=NAME asks for one part, or else for all tests of the
# parts whose names begin so (`kill9`).
set -euo pipefail
cd "$(dirname "$0")/.."

results=$PWD/target/soak.jsonl
commit=$(git describe --always --abbrev=40 --exclude='*' --dirty)
mkdir -p target

# A line for each row of the table; a row fails when hubless lost or doubled something.
bench() {
    local table started=$SECONDS failed=0
    table=$(cd tests/bench && cargo run --locked --release) || failed=1
    printf '%s\n' "$table"
    awk -F ' *[|] *' -v commit="$commit" -v seconds=$((SECONDS - started)) '
        /^\|/ && ++rows > 2 {
            printf "{\"what\":\"bench: %s\",\"count\":1,\"failures\":%d,\"seed\":null,\"seconds\":%d,\"commit\":\"%s\",", \
                $2, $6 !~ /^0( |$)/, seconds, commit
            printf "\"hubless\":\"%s\",\"libzmq\":\"%s\",\"ratio\":\"%s\",\"lost\":\"%s\"}\n", $3, $4, $5, $6
        }' <<<"$table" >>"$results"
    return $failed
}

# A line for each row of the table of the log.
log() {
    local table started=$SECONDS failed=0
    table=$(cd tests/bench && cargo run --locked --release -- durable) || failed=1
    printf '%s\n' "$table"
    awk -F ' *[|] *' -v commit="$commit" -v seconds=$((SECONDS - started)) '
        /^\|/ && ++rows > 2 {
            printf "{\"what\":\"log: %s\",\"count\":1,\"failures\":%d,\"seed\":null,\"seconds\":%d,\"commit\":\"%s\",", \
                $2, $5 !~ /^yes/, seconds, commit
            printf "\"measured\":\"%s\",\"wanted\":\"%s\"}\n", $3, $4
        }' <<<"$table" >>"$results"
    return $failed
}

# A line for each row of hubless beside its peers; a row fails when something was lost or doubled.
peers() {
    local table started=$SECONDS failed=0
    tests/setup.sh nats-server
    table=$(cd tests/bench && cargo run --locked --release -- peers --seconds 1) || failed=1
    printf '%s\n' "$table"
    awk -F ' *[|] *' -v commit="$commit" -v seconds=$((SECONDS - started)) '
        /^\|/ && $4 == "hubless" {
            printf "{\"what\":\"peers: %s, %s B\",\"count\":5,\"failures\":%d,\"seed\":null,\"seconds\":%d,\"commit\":\"%s\",", \
                $2, $3, $7 != "0", seconds, commit
            printf "\"per_s\":\"%s\",\"beside_libzmq\":\"%s\",\"trip_us\":\"%s\",\"busy_trip_us\":\"%s\"}\n", $5, $6, $8, $9
        }' <<<"$table" >>"$results"
    return $failed
}

# A line for each row of the table of WebSockets.
sockets() {
    local table started=$SECONDS failed=0
    table=$(cd tests/bench && cargo run --locked --release -- sockets) || failed=1
    printf '%s\n' "$table"
    awk -F ' *[|] *' -v commit="$commit" -v seconds=$((SECONDS - started)) '
        /^\|/ && ++rows > 2 {
            printf "{\"what\":\"sockets: %s\",\"count\":1,\"failures\":%d,\"seed\":null,\"seconds\":%d,\"commit\":\"%s\",", \
                $2, failed, seconds, commit
            printf "\"plain\":\"%s\",\"v1\":\"%s\",\"wanted\":\"%s\"}\n", $3, $4, $5
        }' failed=$failed <<<"$table" >>"$results"
    return $failed
}

run() {
    if [[ " log bench peers sockets " == *" $1 "* ]]; then
        "$1"
    else
        HUBLESS_SOAK=1 HUBLESS_SOAK_FILE=$results HUBLESS_COMMIT=$commit \
            cargo test --locked --profile fast --features sim,mutants,fuzz,count --test "${1%%:*}" -- --nocapture ${tests[$1]:-}
    fi
}

mapfile -t parts < <(grep -lE 'HUBLESS_SOAK|soak::' tests/*.rs | sed 's|tests/||; s|\.rs$||')
parts+=(instructions log bench peers sockets)
# The tests to run of a part that is not run whole, by `FILE:NAME`.
declare -A tests=()
if [[ -n ${SOAK:-} && " ${parts[*]} " == *" $SOAK "* ]]; then
    parts=("$SOAK")
elif [[ -n ${SOAK:-} ]]; then
    some=()
    for part in "${parts[@]}"; do
        names=$(grep -soE "^fn ${SOAK}[a-z0-9_]*\\(\\)" "tests/$part.rs" | sed 's/^fn //; s/()//' | tr '\n' ' ') || continue
        some+=("$part:$SOAK")
        tests[$part:$SOAK]=$names
    done
    [[ ${#some[@]} -gt 0 ]] || { echo "error: no part and no test $SOAK; the parts are ${parts[*]}" >&2; exit 2; }
    parts=("${some[@]}")
fi

failed=0
for part in "${parts[@]}"; do
    passed="{\"what\":\"part $part\",\"count\":1,\"failures\":0,"
    if [[ $commit != *-dirty ]] && grep -sF "$passed" "$results" | grep -qF "\"commit\":\"$commit\""; then
        echo "soak: $part passed at this commit before"
        continue
    fi
    echo "soak: $part"
    started=$SECONDS
    failures=0
    run "$part" || failures=1
    [[ -n ${COUNT:-} ]] || printf '{"what":"part %s","count":1,"failures":%d,"seed":null,"seconds":%d,"commit":"%s"}\n' \
        "$part" "$failures" $((SECONDS - started)) "$commit" >>"$results"
    failed=$((failed + failures))
done

echo "soak: ${#parts[@]} parts, $failed failed; $results"
[[ $failed -eq 0 ]]
