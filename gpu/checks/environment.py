"""Check 1: the machine, its limits, and the speed of its disk."""

from __future__ import annotations

import importlib.metadata
import mmap
import os
import platform
import resource
import shutil
import subprocess
import time

import psutil
import torch

from ..training import cgroup_limit

PACKAGES = ("torch", "numpy", "lightning", "accelerate", "transformers", "fsspec", "s3fs", "obstore", "pytest")
PIECE_BYTES = 8 * 2**20


def run(settings, report):
    """Report the machine. Nothing is judged."""
    if settings.has_cuda:
        properties = torch.cuda.get_device_properties(0)
        figure = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {_driver()}"
        report.fact("device", f"{figure}, CUDA {torch.version.cuda}, NCCL {_nccl()}")
    else:
        report.skip("device", "no GPU is used")
    packages = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    report.fact("software", f"Python {platform.python_version()}, {packages}, {platform.platform()}")
    memory = psutil.virtual_memory()
    figure = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} available"
    cores = len(os.sched_getaffinity(0))
    report.fact("host", f"{cores} cores, {figure}, cgroup {cgroup_limit()}", cores=cores, memory_bytes=memory.total)
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    report.fact("locked memory", " / ".join("unlimited" if each < 0 else f"{each / 2**20:.0f} MiB" for each in limits))
    shared = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    report.fact("/dev/shm", f"{shared.free / 2**30:.1f} GiB free" if shared else "none")
    free = shutil.disk_usage(settings.folder).free
    report.fact("disk", f"{free / 2**30:.1f} GiB free in {os.path.dirname(settings.folder)}", free_bytes=free)
    num_bytes = settings.pick(2 * 2**30, 2**30, 2**24)
    for name, flags in (("O_DIRECT", os.O_DIRECT), ("page cache and fsync", 0)):
        try:
            speed = _write_speed(settings.folder, num_bytes, flags)
        except OSError as error:
            report.skip(f"disk write, {name}", str(error))
            continue
        report.figure(f"disk write, {name}", f"{speed / 1e9:.2f} GB/s", bytes_per_s=speed)


def _write_speed(folder, num_bytes, flags):
    data = mmap.mmap(-1, PIECE_BYTES)
    data.write(os.urandom(PIECE_BYTES))
    path = os.path.join(folder, "written")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        started = time.perf_counter()
        for _ in range(num_bytes // PIECE_BYTES):
            os.write(file, data)
        os.fsync(file)
        return num_bytes / (time.perf_counter() - started)
    finally:
        os.close(file)
        os.unlink(path)


def _driver():
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _nccl():
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
