#!/bin/bash
# A scale set of one spot VM of Azure that is filled again after an eviction:
#   GROUP=my-group IMAGE=my-image deploy/azure/create.sh
#
# Costs: the VM, at the spot price of the region, up to the price on demand (--max-price -1). Its disk goes with it.
# On a preemption: Scheduled Events tell the training 30 s before. It saves what can be pushed in 25 s, so a whole model
#   lives by periodic saves. The set tries for an hour to restore the VM; after that set its capacity by hand. Set
#   SPOT_URL=az://container/run-7 and SPOT_GRACE_SECONDS=25 in vm/start.sh.
# Run: checked by shellcheck 0.9.0. The options are read by azure-cli 2.91.0, up to its login, in November 2026.
# Not run: no account.
set -euo pipefail
cd "$(dirname "$0")/.."

az vmss create --resource-group "$GROUP" --name trainer --image "$IMAGE" \
    --orchestration-mode Uniform --instance-count 1 --vm-sku Standard_NC24ads_A100_v4 \
    --priority Spot --eviction-policy Delete --max-price -1 --enable-spot-restore true --spot-restore-timeout PT1H \
    --assign-identity --generate-ssh-keys --custom-data vm/start.sh
