#!/usr/bin/env bash
# Run a program with processes, ports and shared memory of its own, as on a machine of its own. It needs root.
# The first process there is a shell, because somebody has to wait for processes whose parents have ended.
# Usage: tests/own_machine.sh PROGRAM [ARGUMENT ...]
set -euo pipefail
exec unshare --pid --fork --kill-child --mount-proc --ipc --net --mount bash -c '
    set -e
    ip link set lo up
    mount -t tmpfs tmpfs /dev/shm
    mkdir -p /run/netns
    mount -t tmpfs tmpfs /run/netns
    "$@"
    exit $?' own_machine.sh "$@"
