#!/bin/sh
# What a rented machine boots with: it joins the market and runs jobs. Lines that are put before this one
# set $ticket, and for each program a URL and its SHA-256, both empty where images have the program.
#
# A program that is on the PATH is used as it is. The agent takes all its options from the environment
# (NAVE_AGENT_DATA, NAVE_AGENT_DOCKER, NAVE_AGENT_RUNTIME, NAVE_AGENT_MESH_INTERFACE and so on), which this
# script hands on: whoever runs it anywhere but on a machine of its own says there what is different.
# shellcheck disable=SC2154
set -eu
umask 077
PATH=${PATH:-}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

say() { printf 'boot: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# What is needed from the network may not be there yet.
again() {
    tries=10
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            say "gave up: $1"
            return 1
        fi
        sleep 10
    done
}

install_packages() {
    if ! has apt-get; then
        say "there is no apt-get to install $*"
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=120 update &&
        apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@"
}

start_engine() {
    if has systemctl && systemctl start docker; then return 0; fi
    has service && service docker start
}

# Jobs run in a Docker Engine, kept in by the packet filter, on file systems of their own.
prepare() {
    if [ "${NAVE_AGENT_RUNTIME:-auto}" = simulated ]; then return 0; fi
    set --
    has dockerd || [ -S "${NAVE_AGENT_DOCKER:-/var/run/docker.sock}" ] || set -- "$@" docker.io
    has nft || set -- "$@" nftables
    has ip || set -- "$@" iproute2
    has mkfs.ext4 || set -- "$@" e2fsprogs
    if [ "$#" -gt 0 ]; then again install_packages "$@"; fi
    if [ -S "${NAVE_AGENT_DOCKER:-/var/run/docker.sock}" ]; then return 0; fi
    again start_engine
}

download() {
    if has curl; then
        curl -fsSL --proto '=https,http' --retry 3 --max-time 300 -o "$2" "$1"
    else
        wget -q -T 300 -O "$2" "$1"
    fi
}

# fetch NAME URL SHA256
fetch() {
    if has "$1" || [ -z "$2" ]; then return 0; fi
    place=/usr/local/bin/$1
    again download "$2" "$place.new"
    if ! printf '%s  %s\n' "$3" "$place.new" | sha256sum -c - >/dev/null; then
        rm -f "$place.new"
        say "$1 is not the program that was meant"
        return 1
    fi
    chmod 0755 "$place.new"
    mv "$place.new" "$place"
}

# A ticket on standard input is in no list of processes.
enrol() { printf '%s' "$ticket" | miner-agent enrol - --wait 300; }

prepare
fetch nave-prover "$prover_url" "$prover_sha256"
fetch miner-agent "$agent_url" "$agent_sha256"
again enrol
while :; do
    miner-agent run || say "the agent ended and is started again"
    sleep 10
done
