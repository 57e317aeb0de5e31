"""The parts of torch's compiler that are not public: its lock, its folder and whether it has compiled anything new."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from .archive import Compiled

_KINDS: Final = ("inductor", "autotune", "aot_autograd", "pgo", "precompile")
_LIBRARY: Final = re.compile(r"(?:\w[\w.-]*/)+\w[\w.-]*\.so")


def is_possible() -> bool:
    """Return whether this torch can save and load what it has compiled."""
    return hasattr(torch.compiler, "save_cache_artifacts")


def take_new() -> tuple[Compiled, frozenset[str]] | None:
    """
    Return all that this process has compiled, and its names. None if that is nothing new since the last call.

    On any thread. It waits for the end of a compilation. Nothing is imported, because the training thread may be
    importing the same modules.
    """
    cache, frames = sys.modules.get("torch.compiler._cache"), sys.modules.get("torch._dynamo.convert_frame")
    if cache is None or frames is None or not cache.CacheArtifactManager.need_serialize():
        return None
    with frames.compile_lock:
        saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return None
    libraries = _libraries()
    return Compiled(saved[0], libraries), _names(saved[1], libraries)


def load(compiled: Compiled) -> frozenset[str]:
    """
    Let torch find *compiled* where it looks before it compiles, and return the names. On the training thread.

    Raises:
        ValueError: Torch cannot read it.
        OSError: The local disk does not take it.
    """
    for path, library in compiled.libraries.items():
        if _LIBRARY.fullmatch(path) is None:
            raise ValueError(f"it has a library with the name {path!r}")
        _write(_folder() / path, library)
    info = torch.compiler.load_cache_artifacts(compiled.artifacts)
    if info is None:
        raise ValueError("torch cannot read it")
    return _names(info, compiled.libraries)


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # costly, and needed only if something is compiled

    return Path(os.path.realpath(cache_dir()))


def _libraries() -> Mapping[str, bytes]:
    """
    Return the libraries of Inductor that this process has loaded, and those by which it probes the processor.

    Other programs may use the same folder. A probe is loaded by a process of its own, and is the only library without
    ``.main`` in its name.
    """
    folder = _folder()
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.partition(f"{folder}/")[2] for line in lines}
    paths |= {str(file.relative_to(folder)) for file in folder.glob("??/*.so") if not file.name.endswith(".main.so")}
    return {path: (folder / path).read_bytes() for path in sorted(paths) if _LIBRARY.fullmatch(path)}


def _names(info: Any, libraries: Iterable[str]) -> frozenset[str]:
    artifacts = {f"{kind}/{key}" for kind in _KINDS for key in getattr(info, f"{kind}_artifacts", ())}
    return frozenset(artifacts.union(libraries))


def _write(file: Path, library: bytes) -> None:
    """Write *file* unless it exists. Other ranks of this machine may do the same."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_name(f"{file.name}.{os.getpid()}")
    written.write_bytes(library)
    written.replace(file)
