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
socket=${NAVE_AGENT_DOCKER:-/var/run/docker.sock}

say() { printf 'boot: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# What is needed may not be there yet, and a machine that is new may upgrade itself first and hold the packages
# meanwhile: it is given back when this takes too long, and until then there is nothing better to do than to try again.
again() {
    tries=120
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            say "gave up: $1"
            return 1
        fi
        say "trying again: $1"
        sleep 10
    done
}

# What packages write others must be able to read; nothing asks, and nothing restarts what it likes.
packages() {
    (
        umask 022
        DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
            apt-get -q -y -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold "$@"
    )
}

install_packages() {
    if ! has apt-get; then
        say "there is no apt-get to install $*"
        return 1
    fi
    # An installation that was cut short keeps all others from beginning.
    dpkg --configure -a || say "packages are not all set up yet"
    # One source of packages that does not answer is no reason not to ask the others.
    packages update || say "not all lists of packages are fresh"
    packages install --no-install-recommends "$@"
}

start_engine() {
    if ! has systemctl || ! systemctl start docker; then
        if ! has service || ! service docker start; then return 1; fi
    fi
    [ -S "$socket" ]
}

# Jobs run in a Docker Engine, kept in by the packet filter, on file systems of their own.
prepare() {
    if [ "${NAVE_AGENT_RUNTIME:-auto}" = simulated ]; then return 0; fi
    if [ "$(id -u)" -ne 0 ]; then
        say "only root can run jobs in an engine"
        return 1
    fi
    set --
    has dockerd || [ -S "$socket" ] || set -- "$@" docker.io
    has nft || set -- "$@" nftables
    has ip || set -- "$@" iproute2
    has mkfs.ext4 || set -- "$@" e2fsprogs
    if [ -n "$agent_url$prover_url" ]; then
        has curl || has wget || set -- "$@" curl
        [ -e /etc/ssl/certs/ca-certificates.crt ] || set -- "$@" ca-certificates
    fi
    if [ "$#" -gt 0 ]; then again install_packages "$@"; fi
    if [ -S "$socket" ]; then return 0; fi
    again start_engine
}

download() {
    if has curl; then
        curl -fsSL --proto '=https,http' --connect-timeout 20 --retry 3 --max-time 300 -o "$2" "$1"
    else
        wget -q -T 60 -t 3 -O "$2" "$1"
    fi
}

# fetch NAME URL SHA256
fetch() {
    if has "$1" || [ -z "$2" ]; then return 0; fi
    place=/usr/local/bin/$1
    mkdir -p /usr/local/bin
    again download "$2" "$place.new"
    if ! printf '%s  %s\n' "$3" "$place.new" | sha256sum -c - >/dev/null 2>&1; then
        rm -f "$place.new"
        say "$1 is not the program that was meant"
        return 1
    fi
    chmod 0755 "$place.new"
    mv "$place.new" "$place"
}

# A ticket on standard input is in no list of processes.
enrol() { printf '%s' "$ticket" | miner-agent enrol - --wait 300; }

main() {
    prepare
    fetch nave-prover "$prover_url" "$prover_sha256"
    fetch miner-agent "$agent_url" "$agent_sha256"
    again enrol
    unset ticket
    while :; do
        miner-agent run || say "the agent ended and is started again"
        sleep 10
    done
}

# A shell that reads this script from its input has read it all by now, and nothing that runs reads on there.
main </dev/null
