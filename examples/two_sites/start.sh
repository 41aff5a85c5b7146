#!/usr/bin/env bash
# Two sites that are joined by one RabbitMQ: start.sh amqp://guest:guest@localhost
#
# Each site is a mesh of two nodes on this machine, and each node offers the bridge: kill any of them, and what is said at one
# site is still seen at the other, once. Ctrl-C ends all of it. Needs `hubless` on the path, or a release build of it.
set -euo pipefail

broker=${1:?which broker? start.sh amqp://guest:guest@localhost}
hubless=$(command -v hubless || echo "$(dirname "$0")/../../target/release/hubless")
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$folder"' EXIT

start() { # SITE NAME [OPTION]...
    local site=$1 name=$2
    "$hubless" run -q --mesh "$site" --name "$name" --no-mdns --listen 127.0.0.1:0 --http 127.0.0.1:0 \
        --data-dir "$folder/$name" --ready-file "$folder/$name.json" --amqp "$broker" "${@:3}" &
    until [[ -s $folder/$name.json ]]; do kill -0 $!; sleep 0.1; done
    echo "$site: $name is at http://$(field "$name" http)/"
}
field() { sed "s/.*\"$2\":\"\([^\"]*\)\".*/\1/" "$folder/$1.json"; }

for site in north south; do
    start "$site" "$site-1"
    start "$site" "$site-2" --connect "$(field "$site-1" listen)"
done
echo "say something at one site and look at the other; Ctrl-C ends"
wait
