"""
Paths in the restored state of ``ModelCheckpoint``, which deletes, overwrites and loads the files that they name.

The state comes from the store, where somebody may have changed it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

PATHS: Final = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Keys of the state whose value is a path, or empty."""


def is_local(path: Any) -> bool:
    """Return True if *path* is no URL and no chain of file systems, such as ``simplecache::/data``."""
    return path is not None and "://" not in str(path) and "::" not in str(path)


def is_below(path: object, folder: str) -> bool:
    """Return True if *path* is *folder* and then names without ``..``. The answer is the same on every rank."""
    start = os.path.join(folder, "")
    if not isinstance(path, str) or not path.startswith(start):
        return False
    rest = path[len(start) :]
    return is_local(rest) and "\0" not in rest and not {"", os.curdir, os.pardir} & set(rest.split(os.sep))


def believed(callback: ModelCheckpoint, state: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """Return the *state* of *callback* without the paths that are below none of *folders*, and warn of them."""

    def is_believed(path: object) -> bool:
        return any(is_below(path, folder) for folder in folders)

    best = state.get("best_k_models", {})
    named = [*best, *(state.get(name) for name in PATHS)]
    strange = sorted({repr(path) for path in named if path and not is_believed(path)})
    if not strange:
        return state
    rank_zero_warn(
        f"{type(callback).__name__}: paths in the restored state are not below its directory {callback.dirpath!r} and "
        f"are dropped, because Lightning could delete or load what is there: {', '.join(strange)}"
    )
    kept = {path: score for path, score in best.items() if is_believed(path)}
    paths: dict[str, Any] = {name: state[name] if is_believed(state[name]) else "" for name in PATHS if name in state}
    if kept and paths.get("kth_best_model_path") not in kept:  # Lightning looks it up in the others
        paths["kth_best_model_path"] = (max if callback.mode == "min" else min)(kept, key=kept.__getitem__)
    return {**state, "best_k_models": kept, **paths}
