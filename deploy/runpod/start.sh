#!/bin/bash
# The command of a container on RunPod: `bash -c /workspace/start.sh`, with this file and train.py on its volume.
#
# Costs: the pod by the second. A stopped pod still pays for its volume: terminate it when the training is done.
# On a preemption: a SIGTERM 5 s before, or nothing. Because of `exec`, `spot run` becomes process 1 and gets it. In 5 s
#   a step can be written to the volume, and the next pod pushes it first. Without the signal, the time since the last
#   periodic save is lost. Start the pod again by hand, or start another one with the same volume.
# Run: this file as it is, by the tests, with a program that reads its settings. Checked by shellcheck 0.9.0.
# Not run: no pod was rented.
set -euo pipefail

export SPOT_URL="${SPOT_URL:-s3://bucket/run-7}" SPOT_EVERY_SECONDS="${SPOT_EVERY_SECONDS:-auto}" SPOT_GRACE_SECONDS=5
export SPOT_LOCAL_DIR="${SPOT_LOCAL_DIR:-/workspace/spot}" SPOT_LOCAL_DIR_SURVIVES=true
cd "${WORKSPACE:-/workspace}"
exec spot run -- python train.py
