"""The software and the hardware that compiled code is made for."""

from __future__ import annotations

import platform
import re
import sysconfig
from pathlib import Path
from typing import Final

import torch
import xxhash

_PROCESSOR: Final = re.compile(r"^(?:vendor_id|model name|flags|Features|CPU implementer|CPU part)\s*:.*", re.MULTILINE)
_GPU: Final = re.compile(r"^Model:.*", re.MULTILINE)


def surroundings(root: Path = Path("/")) -> str:
    """
    Return a hash of what compiled code depends on: torch, Python, the distribution, the processor and the GPUs.

    Libraries are compiled for the instructions of the processor and linked with those of the distribution. Torch looks
    at neither of the two before it loads one. GPUs are read from the files of their driver, because asking CUDA would
    initialize it. Torch compares their names itself as well.
    """
    gpus = {gpu for file in root.glob("proc/driver/nvidia/gpus/*/information") for gpu in _GPU.findall(_text(file))}
    facts = [
        torch.__version__,
        torch.version.git_version,
        torch.version.cuda,
        torch.version.hip,
        sysconfig.get_config_var("SOABI"),
        platform.libc_ver(),
        _text(root / "etc/os-release"),
        sorted(set(_PROCESSOR.findall(_text(root / "proc/cpuinfo")))),
        sorted(gpus),
    ]
    return xxhash.xxh3_64_hexdigest(repr(facts).encode())


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
