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

# Runs the benchmark with the arguments behind the first two, shows its table, and adds the lines that the awk program makes
# of its rows with `line`.
table() {
    local part=$1 program=$2 table started=$SECONDS failed=0
    shift 2
    table=$(cd tests/bench && cargo run --locked --release -- "$@") || failed=1
    printf '%s\n' "$table"
    awk -F ' *[|] *' -v part="$part" -v commit="$commit" -v seconds=$((SECONDS - started)) '
        function line(what, count, failures, more) {
            printf "{\"what\":\"%s: %s\",\"count\":%d,\"failures\":%d,\"seed\":null,\"seconds\":%d,\"commit\":\"%s\"%s}\n", \
                part, what, count, failures, seconds, commit, more
            failed += failures
        }
        function named(name, value) { return ",\"" name "\":\"" value "\"" }
        /^\|/ && ++rows > 2 { '"$program"' }
        END { exit failed > 0 }' <<<"$table" >>"$results" || failed=1
    return $failed
}

# A row fails when hubless lost or doubled something.
bench() {
    table bench 'line($2, 1, $6 !~ /^0( |$)/,
        named("hubless", $3) named("libzmq", $4) named("ratio", $5) named("lost", $6))'
}

# A row of the log fails when it is not enough.
log() {
    table log 'line($2, 1, $5 !~ /^yes/, named("measured", $3) named("wanted", $4))' durable
}

# Of hubless beside its peers; a row fails when something was lost or doubled.
peers() {
    tests/setup.sh nats-server
    table peers 'if ($4 == "hubless") line($2 ", " $3 " B", 5, $7 != "0", named("per_s", $5) named("beside_libzmq", $6) \
        named("trip_us", $8) named("busy_trip_us", $9))' peers --seconds 1
}

# A row of WebSockets fails when one of the two kinds is not what is wanted: the last number of a column counts.
sockets() {
    table sockets 'misses = 0
        for (column = 3; column <= 4; column++) {
            numbers = split($column, number, /[^0-9.]+/)
            last = number[numbers] == "" ? number[numbers - 1] : number[numbers]
            if ($5 ~ /≥/) misses += last < 1.5
            if ($5 ~ /20 ms/) misses += last > 20
            if ($5 ~ /24 KiB/) misses += last > 24
            if ($5 == "0") misses += last != 0
        }
        line($2, 3, misses > 0, named("plain", $3) named("v1", $4) named("wanted", $5))' sockets
}

run() {
    if [[ " log bench peers sockets " == *" $1 "* ]]; then
        "$1"
    else
        local build=(--profile fast --features sim,mutants,fuzz,count)
        # What a node takes is claimed of the binary that `make run` builds.
        [[ $1 != small* ]] || build=(--release)
        HUBLESS_SOAK=1 HUBLESS_SOAK_FILE=$results HUBLESS_COMMIT=$commit \
            cargo test --locked "${build[@]}" --test "${1%%:*}" -- --nocapture ${tests[$1]:-}
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
