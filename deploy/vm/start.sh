#!/bin/bash
# The start of a training on a spot VM: user data of EC2, startup script of Google Cloud, custom data of Azure. The
# image has /opt/training with train.py, and spot_plugins with its extra cli, so that `spot` is in PATH.
#
# Costs: the VM. Whatever starts VMs has to be told when the training is done: this script turns its VM off, and a group
#   would start another one. Set its size to 0 then.
# On a preemption: the training asks the metadata service, so it saves once after the notice, and a last time just
#   before the end. The next VM runs this script and continues.
# Run: checked by shellcheck 0.9.0. `systemd-analyze verify` 252 knows the properties.
# Not run: there was no systemd, and no cloud was rented.
set -euo pipefail

# To adapt. The grace period is that of the cloud: 110 on AWS, 120 on Google Cloud with gcp/create.sh, 25 on Azure.
export SPOT_URL=s3://bucket/run-7 SPOT_EVERY_SECONDS=auto SPOT_GRACE_SECONDS=110

# A unit of its own gets the SIGTERM of a shutdown and the time to answer it, whoever runs this script. With
# KillMode=mixed `spot run` alone gets it, and passes it on.
systemd-run --unit=training --working-directory=/opt/training \
    --setenv=SPOT_URL --setenv=SPOT_EVERY_SECONDS --setenv=SPOT_GRACE_SECONDS \
    --property=KillMode=mixed --property=TimeoutStopSec="$SPOT_GRACE_SECONDS" \
    --property=Restart=on-failure --property=RestartSec=60 --property=SuccessAction=poweroff \
    spot run -- torchrun --nproc-per-node gpu train.py
