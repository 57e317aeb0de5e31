#!/bin/bash
# A group of one spot VM of Google Cloud that gets a notice of 120 s:
#   PROJECT=my-project ZONE=europe-west4-a deploy/gcp/create.sh
#
# Costs: the VM by the second, at the spot price of the zone. Its disk goes with it.
# On a preemption: 120 s before the shutdown the metadata service tells the training, which saves once at once and a
#   last time just before the end. The group makes a new VM where it finds one. Set SPOT_URL=gs://bucket/run-7 and
#   SPOT_GRACE_SECONDS=120 in vm/start.sh; without the notice period it would be 25.
# Run: checked by shellcheck 0.9.0. The template is read by google-cloud-compute 1.56.0, which refuses fields that the
#   API does not have, in November 2026.
# Not run: no account.
set -euo pipefail
cd "$(dirname "$0")/.."

start=$(python3 -c 'import json; print(json.dumps(open("vm/start.sh").read()))')
curl --fail-with-body --silent --show-error \
    --header "Authorization: Bearer $(gcloud auth print-access-token)" --header "Content-Type: application/json" \
    --data @- "https://compute.googleapis.com/compute/v1/projects/$PROJECT/global/instanceTemplates" <<TEMPLATE
{
  "name": "trainer",
  "properties": {
    "machineType": "a2-highgpu-1g",
    "scheduling": {
      "provisioningModel": "SPOT",
      "onHostMaintenance": "TERMINATE",
      "automaticRestart": false,
      "preemptionNoticeDuration": {"seconds": "120"}
    },
    "disks": [
      {
        "boot": true,
        "autoDelete": true,
        "initializeParams": {"sourceImage": "global/images/family/trainer", "diskSizeGb": "200"}
      }
    ],
    "networkInterfaces": [{"network": "global/networks/default"}],
    "serviceAccounts": [{"email": "default", "scopes": ["https://www.googleapis.com/auth/devstorage.read_write"]}],
    "metadata": {"items": [{"key": "startup-script", "value": $start}]}
  }
}
TEMPLATE
gcloud compute instance-groups managed create trainer --project "$PROJECT" --zone "$ZONE" --template trainer --size 1
