"""
Managed spot training of SageMaker: ``pip install 'sagemaker<3'``, ``python deploy/aws/sagemaker_spot.py ROLE_ARN``.

Costs: the seconds of the instance at the spot price; SageMaker shows the share that was saved. The time that it waits
for an instance is free. ``max_wait`` bounds both.

On a preemption: no notice reaches the training. SageMaker starts the same job again, which continues from its newest
periodic save. So the interval is what one interruption can cost: ``auto`` finds the best one.

Run: `fit` of sagemaker 2 against a local server that speaks S3 and SageMaker (moto), in November 2026. The request that
it sent has spot instances, both limits and the variables.

Not run: no account.
"""

from __future__ import annotations

import sys

from sagemaker.pytorch import PyTorch

HOUR_S = 3600

PyTorch(
    entry_point="train.py",
    source_dir=".",  # with requirements.txt, which names spot_plugins
    role=sys.argv[1],
    instance_type="ml.g5.2xlarge",
    instance_count=1,
    framework_version="2.6",
    py_version="py312",
    use_spot_instances=True,
    max_run=24 * HOUR_S,
    max_wait=48 * HOUR_S,
    environment={"SPOT_URL": "s3://bucket/run-7", "SPOT_EVERY_SECONDS": "auto"},
).fit(wait=False)
