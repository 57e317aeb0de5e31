"""Names of GPUs: one name for all the spellings of providers."""

from __future__ import annotations

import re
from typing import Final

_SEVERAL_SIZES: Final = {"A100": (40, 80), "V100": (16, 32)}
"""GPUs that are sold with several sizes of memory, in GB."""

_MODELS: Final = {
    **{name: name for name in ("B300", "B200", "GB300", "GB200", "GH200", "H200", "H100", "H20", "L40S", "L40", "L4")},
    **{name: name for name in ("A100", "A40", "A30", "A10G", "A10", "V100", "P100", "T4")},
    **{name: name for name in ("MI355X", "MI325X", "MI300X", "MI250X", "MI250")},
    **{name: rf"(?:RTX)?{name}" for name in ("A6000", "A5000", "A4000")},
    **{f"RTX{number}": rf"RTX{number}" for number in ("5090", "4090", "3090")},
    "RTX6000ADA": "RTX6000ADA",
    "RTXPRO6000": "RTXPRO6000",
}
"""By name, the pattern of its spellings in capital letters and without spaces."""

NAMES: Final = (*_MODELS, *(f"{name}-{size}GB" for name, sizes in _SEVERAL_SIZES.items() for size in sizes))
"""All names that can be asked for."""

_MAKER: Final = re.compile(r"NVIDIA|AMD|INSTINCT|TESLA|GEFORCE|GPU")
_MEMORY: Final = re.compile(r"(\d+)\s*GI?B")
# Behind the model comes its form, memory or generation, as in H100SXM, A100-SXM4-80GB or RTX6000ADAGENERATION.
_AFTER: Final = r"(?:SXM|PCI|NVL|HBM|SMX|X$|GENERATION|SERVER|WORKSTATION|MAXQ|WS|S$|OAM|MEGA|\d+G|$)"
_PATTERNS: Final = {name: re.compile(pattern + _AFTER) for name, pattern in _MODELS.items()}


def normal_name(text: str, memory_gb: float | None = None) -> str | None:
    """
    Return the name of the GPU that *text* describes, such as ``A100-80GB`` for ``NVIDIA A100-SXM4-80GB``.

    Args:
        text: A provider's or a user's own spelling.
        memory_gb: Memory of one GPU in GB, if the provider says it elsewhere. The nearest size counts.

    Returns:
        A name of :data:`NAMES`, or None for any other GPU.
    """
    compact = _MAKER.sub("", re.sub(r"[\s_()-]+", "", text.upper()))
    name = next((name for name, pattern in _PATTERNS.items() if pattern.match(compact)), None)
    if name not in _SEVERAL_SIZES:
        return name
    if (found := _MEMORY.search(text.upper())) is not None:
        memory_gb = float(found[1])
    if not memory_gb:
        return name
    return f"{name}-{min(_SEVERAL_SIZES[name], key=lambda size: abs(size - memory_gb))}GB"


def matches(gpu: str, wanted: str) -> bool:
    """Return whether *gpu* is the one that is *wanted*. A name without its memory wants all sizes of memory."""
    return gpu == wanted or gpu.startswith(f"{wanted}-")
