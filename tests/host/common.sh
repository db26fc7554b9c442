# shellcheck shell=bash
# What every script of the test host shares. Sourced, never run.
# shellcheck disable=SC2034 # used by the scripts that source this file

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${MONOHULL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/monohull}

# The emulated machine. One CPU: KVM patches its own code (static keys) when VMs come and go, and on several emulated CPUs QEMU now and then
# executes a half-patched instruction, which crashes the host's kernel.
host_cpus=${MONOHULL_HOST_CPUS:-1}
host_memory=${MONOHULL_HOST_MEMORY:-4096}

say() { printf 'test host: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# need COMMAND…: stops with the fix when a command is missing.
need() {
    local command
    for command in "$@"; do
        command -v "$command" > /dev/null || die "the command $command is missing; run 'make setup'"
    done
}

# hash: a short key of what comes on stdin.
hash() { sha256sum | cut -c 1-16; }

# prune PREFIX: forgets cached things which no run has used for two weeks. Every use touches what it uses.
prune() { find "$cache/testhost" -maxdepth 1 -name "$1-*" -mtime +14 -exec rm -rf {} +; }

# seconds_since EPOCHREALTIME: for progress lines.
seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }
