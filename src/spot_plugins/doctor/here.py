"""Findings about this machine and its packages: nothing is written, and nothing is asked over the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from ..machine.host_memory import SPARE, available_bytes
from ..machine.versions import HOSTS, installed
from .findings import Finding
from .wording import size

ENOUGH_SHARED_BYTES: Final = 1024**3
"""A container of docker has 64 MiB of ``/dev/shm`` unless it is given more, and loader workers pass batches there."""
ASK_GPUS_S: Final = 20.0


def look_at_packages() -> Iterator[Finding]:
    """Compare the installed packages with the versions that spot_plugins declares."""
    found = installed()
    if not found:
        yield Finding(
            "versions",
            "unknown",
            "versions cannot be compared, because the package packaging is missing",
            "pip install packaging",
        )
        return
    others = [each for each in found if not each.is_wanted]
    for each in others:
        yield Finding("versions", "warning", each.problem, each.remedy)
    if not others:
        hosts = ", ".join(f"{each.name} {each.version}" for each in found if each.name in HOSTS)
        yield Finding("versions", "good", f"Python {sys.version.split()[0]}, {hosts}")


def look_at_machine(share_bytes: float | None) -> Iterator[Finding]:
    """
    Look at processors, GPUs, memory and shared memory.

    Args:
        share_bytes: Bytes of a checkpoint that this machine stores. None: unknown.
    """
    yield Finding("machine", "good", f"{len(os.sched_getaffinity(0))} processors, {_gpus()}")
    free = available_bytes()
    if share_bytes is not None and free < share_bytes * (1 + SPARE):
        yield Finding(
            "memory",
            "bad",
            f"{size(free)} of host memory are available, but a save copies {size(share_bytes)} of this machine there",
            "take a machine or a container with more memory, or shard the state over more machines",
        )
    else:
        yield Finding("memory", "good", f"{size(free)} of host memory are available for the copies of saves")
    yield from _look_at_shared_memory()


def _look_at_shared_memory() -> Iterator[Finding]:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        yield Finding("shared memory", "unknown", "/dev/shm cannot be read")
        return
    if total < ENOUGH_SHARED_BYTES:
        yield Finding(
            "shared memory",
            "warning",
            f"/dev/shm has {size(total)}, through which the workers of data loaders pass their batches",
            "start the container with --shm-size=8g (Kubernetes: mount an emptyDir with medium: Memory at /dev/shm)",
        )
    else:
        yield Finding("shared memory", "good", f"/dev/shm has {size(total)}")


def _gpus() -> str:
    """Return the GPUs that the driver of NVIDIA shows."""
    if (program := shutil.which("nvidia-smi")) is None:
        return "no GPU of NVIDIA"
    try:
        # wait: ASK_GPUS_S; the GPUs are unknown
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=ASK_GPUS_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return "GPUs unknown, because nvidia-smi fails"
    names = [line.partition(": ")[2].partition(" (")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    counts = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return counts or "no GPU of NVIDIA"
