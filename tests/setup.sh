#!/usr/bin/env bash
# Installs what the tests need beside Rust, and nothing that is there already.
#
# `setup.sh [PACKAGE…]`: Debian packages, a Python with pika and pyzmq under target/venv, the npm packages of tests/web and examples/interop, cargo-deny. Asks before it
# changes the machine, unless root or CI=true. Quick when all is there; says what is missing when it cannot help.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'error: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

may() {
    [[ ${CI:-} == true || $(id -u) -eq 0 ]] && return
    [[ -t 0 ]] || fail "the tests need: $1" "run \`make setup\` in a terminal, or set CI=true to agree beforehand"
    read -r -p "The tests need: $1. Install? [y/N] " answer
    [[ $answer == [yY]* ]] || fail "not installed: $1"
}

[[ $(uname -s) == Linux ]] || fail "the tests make network namespaces and so need Linux" "\`cargo test --lib\` runs anywhere"
command -v cargo >/dev/null || fail "no cargo" "install Rust (https://rustup.rs)"

for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 && continue
    may "the Rust component ${part/fmt/rustfmt}"
    rustup component add "${part/fmt/rustfmt}"
done

# A command or file, and the Debian package that brings it.
missing=()
while read -r have package; do
    case $have in
        /*) compgen -G "$have" >/dev/null || missing+=("$package") ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$have" >/dev/null || missing+=("$package") ;;
    esac
done <<'LIST'
cc gcc
c++ g++
curl curl
openssl openssl
git git
ip iproute2
redis-server redis-server
rabbitmq-server rabbitmq-server
chromium chromium
tmux tmux
valgrind valgrind
node nodejs
npm npm
/usr/include/zmq.h libzmq3-dev
python3 python3-venv
LIST
# What else was asked for, where a package is called as its command.
for command in "$@"; do
    command -v "$command" >/dev/null || missing+=("$command")
done
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

if [[ ${#missing[@]} -gt 0 ]]; then
    command -v apt-get >/dev/null || fail "not installed: ${missing[*]} (Debian's names)" "install them with this system's package manager"
    may "the Debian packages ${missing[*]}"
    root=()
    [[ $(id -u) -eq 0 ]] || root=(sudo)
    "${root[@]}" apt-get update -q
    # The brokers are for the tests, on ports of their own: none of them shall run as a service.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends "${missing[@]}"
fi

if ! target/venv/bin/python -c 'import pika, redis, zmq' 2>/dev/null; then
    may "pika, pyzmq and redis in target/venv"
    python3 -m venv --clear target/venv
    target/venv/bin/python -m pip install -q pika pyzmq redis
fi

for folder in tests/web examples/interop; do
    if ! cmp -s $folder/package-lock.json $folder/node_modules/.installed; then
        may "the npm packages of $folder"
        (cd $folder && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --no-audit --no-fund --silent)
        cp $folder/package-lock.json $folder/node_modules/.installed
    fi
done

if ! cargo deny --version >/dev/null 2>&1; then
    may "cargo-deny (takes some minutes)"
    cargo install --locked --quiet cargo-deny
fi

if ip netns add hubless-setup 2>/dev/null; then
    ip netns delete hubless-setup
else
    echo "note: this user cannot make network namespaces, so the tests that need them will fail; \`make help\` says what to do" >&2
fi
