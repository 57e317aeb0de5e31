#!/bin/bash
# The onstart script of an interruptible instance of Vast.ai, which runs at each start of its container.
#
# Costs: your bid while it runs. A stopped instance still pays for its disk: destroy it when the training is done.
# On a preemption: the instance stops without a notice, so what is lost is the time since the last periodic save. Its
#   disk stays. When the bid wins again, this script runs again, and a step that only the disk has is pushed first. On
#   another machine the same script continues from the store.
# Run: this file as it is, by the tests, with a program that reads its settings. Checked by shellcheck 0.9.0.
# Not run: no machine was rented.
set -euo pipefail

export SPOT_URL="${SPOT_URL:-s3://bucket/run-7}" SPOT_EVERY_SECONDS="${SPOT_EVERY_SECONDS:-auto}"
export SPOT_LOCAL_DIR="${SPOT_LOCAL_DIR:-/workspace/spot}" SPOT_LOCAL_DIR_SURVIVES=true
cd "${WORKSPACE:-/workspace}"
exec spot run --max-restarts 10 -- python train.py >> train.log 2>&1
