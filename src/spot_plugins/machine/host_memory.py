"""Host memory that this process may still take. The machine and the cgroups of the process limit it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SPARE: Final = 0.1
"""Share of what is to be taken that must be available beside it, for the training and the pusher process."""

_MIB: Final = 1024**2
_V2: Final = ("memory.max", "memory.current", "")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


class NotEnoughError(MemoryError):
    """
    The machine, or a cgroup of this process, has too little memory.

    Attributes:
        needed: Bytes that are to be taken.
        available: Bytes that are available.
    """

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(needed, available)
        self.needed = needed
        self.available = available

    def __str__(self) -> str:
        return (
            f"a save of this rank needs {self.needed / _MIB:,.0f} MiB of host memory, and {SPARE:.0%} to spare, but "
            f"{self.available / _MIB:,.0f} MiB are available on this machine and in its cgroup. Take a machine or a "
            f"container with more memory, start fewer loader workers, or shard the state over more ranks"
        )


def check_available(num_bytes: int) -> None:
    """Raise :exc:`NotEnoughError` if :func:`has_available` returns false."""
    if not has_available(num_bytes):
        raise NotEnoughError(num_bytes, available_bytes())


def has_available(num_bytes: int) -> bool:
    """Return whether the process can take *num_bytes*, with a share of :data:`SPARE` beside them."""
    return available_bytes() >= num_bytes * (1 + SPARE)


def available_bytes(root: Path = Path("/")) -> int:
    """
    Return the bytes that this process can take before the kernel kills something for want of memory.

    Each cgroup above the process may have a limit. Cached files do not count, because the kernel drops them first. They
    fill a cgroup up to its limit as a rule. A container may see its own cgroup as the root of the tree, and another
    path in ``/proc``.
    """
    rooms = [_number(root / "proc/meminfo", r"^MemAvailable: +(\d+) kB") * 1024]
    for folder, (limit, usage, prefix) in _cgroups(root):
        try:
            text = (folder / limit).read_text().strip()
            if text != "max":
                used = int((folder / usage).read_text())
                rooms.append(int(text) - used + _number(folder / "memory.stat", rf"^{prefix}(?:in)?active_file (\d+)"))
        except (OSError, ValueError):  # the root of the tree has no limit, or this kernel does not tell
            continue
    return min(rooms)


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders of the cgroups of this process, and the names of their files."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, names = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder, names
            if folder == mount:
                break


def _number(file: Path, pattern: str) -> int:
    """Return the sum of all numbers in *file* that *pattern* finds."""
    return sum(map(int, re.findall(pattern, file.read_text(), re.MULTILINE)))
