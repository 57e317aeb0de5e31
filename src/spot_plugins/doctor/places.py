"""Findings about the store and the local disk: whether they can be used, how fast they are, and what fits in time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Final

from ..clock import wall_time
from ..config import SpotConfig, printable_url
from ..economics.grace import bytes_in_grace, nodes_to_fit
from ..economics.inputs import ASSUMED_STEP_S
from ..economics.link_speed import measure_disk, measure_store
from ..economics.planning import POLL_S
from ..errors import ConfigError, SpotError, StoreError
from ..locations import is_local
from ..notices.surroundings import Surroundings
from ..store import is_in_memory, scratch_directory
from ..upkeep.listing import list_run
from .findings import Finding
from .wording import seconds, size

REACTION_S: Final = POLL_S + ASSUMED_STEP_S
"""Seconds from a notice to the first byte that is stored: a poll of the notice source, and the end of a step."""

_OFTEN: Final = "save often (spot plan computes the best interval)"


class Places:
    """
    The store and the local disk of a run.

    Args:
        config: The settings of the run.
        checkpoint_bytes: Size of a checkpoint. None: unknown.
        num_nodes: Number of machines that store it.
    """

    def __init__(self, config: SpotConfig, checkpoint_bytes: float | None, num_nodes: int) -> None:
        self._config = config
        self._checkpoint_bytes = checkpoint_bytes
        self._num_nodes = num_nodes
        self._store_bytes_per_s: float | None = None

    def look_at_store(self) -> Iterator[Finding]:
        """Put, get, list and delete small objects, and say which run is there. At most 256 MiB are put, for 10 s."""
        shown = printable_url(self._config.url)
        try:
            speed = measure_store(self._config.url)
        except ConfigError as error:
            yield Finding("store", "bad", f"{error}", "correct this before the training: it will refuse to begin")
            return
        except StoreError as error:
            yield Finding(
                "store", "bad", f"{shown}: cannot {error.operation} an object: {error.reason}", "try again later"
            )
            return
        self._store_bytes_per_s = speed.value
        yield Finding("store", "good", f"{shown} can be used: {size(speed.value)}/s from this machine ({speed.basis})")
        yield from self._look_at_run()

    def look_at_disk(self) -> Iterator[Finding]:
        """Write to the directory for local copies. Nothing is looked at if the run itself lies in a directory."""
        if self._config.local_dir is None and is_local(self._config.url):
            yield Finding("disk", "good", "no local copies are needed, because the run lies in a directory")
            return
        try:
            directory = self._config.local_dir or scratch_directory(self._config.url)
            os.makedirs(directory, exist_ok=True)
            speed = measure_disk(directory)
            free = shutil.disk_usage(directory).free
        except (SpotError, OSError) as error:
            yield Finding(
                "disk", "bad", f"local copies cannot be written: {error}", "set SPOT_LOCAL_DIR to another one"
            )
            return
        if is_in_memory(directory):
            yield Finding(
                "disk",
                "warning",
                f"{directory} is in memory (tmpfs), so local copies take memory from the training",
                "set SPOT_LOCAL_DIR to a directory on a disk",
            )
        needed = None if self._share_bytes is None else (self._config.keep_last + 1) * self._share_bytes
        if needed is not None and free < needed:
            yield Finding(
                "disk",
                "bad",
                f"{size(free)} are free at {directory}, but the local copies of this machine take {size(needed)}",
                "free space there, or set SPOT_LOCAL_DIR to a larger disk",
            )
        else:
            yield Finding("disk", "good", f"{directory} takes {size(speed.value)}/s, {size(free)} are free")

    def look_at_grace(self, surroundings: Surroundings) -> Iterator[Finding]:
        """Compare what can be stored between a notice and the end of a machine with the size of the checkpoint."""
        grace_s, speed = surroundings.grace_s, self._store_bytes_per_s
        if grace_s == 0:
            return  # the findings about notices say so
        if speed is None:
            yield Finding("grace", "unknown", "the speed of the store is unknown", "see the finding about the store")
            return
        fits = bytes_in_grace(grace_s, REACTION_S, speed)
        room = f"{seconds(grace_s)} after a notice ({surroundings.limited_by}) store {size(fits)} per machine"
        if fits == 0:
            text = f"{seconds(grace_s)} after a notice ({surroundings.limited_by}) are too short for a save"
            yield Finding("grace", "warning", f"{text}, which begins up to {REACTION_S:g} s later", _OFTEN)
            return
        if (wanted := self._checkpoint_bytes) is None:
            yield Finding("grace", "unknown", room, "give the size of the model: --params 7B, or --bytes 80GB")
            return
        share = wanted / self._num_nodes
        needed = REACTION_S + share / speed
        if needed <= grace_s:
            yield Finding("grace", "good", f"{room}, and {size(share)} are needed: {seconds(needed)}")
            return
        nodes = nodes_to_fit(wanted, grace_s, REACTION_S, speed)
        yield Finding(
            "grace",
            "warning",
            f"{room}, but {size(share)} are needed, which take {seconds(needed)}: a notice loses the steps since the "
            f"last save",
            f"{_OFTEN}{_or_shard(nodes, self._num_nodes)}",
        )

    @property
    def _share_bytes(self) -> float | None:
        return None if self._checkpoint_bytes is None else self._checkpoint_bytes / self._num_nodes

    def _look_at_run(self) -> Iterator[Finding]:
        try:
            listing = list_run(self._config.url)
        except ConfigError:
            yield Finding("run", "good", "no run is there yet, so a training begins at step 0")
            return
        except SpotError as error:
            yield Finding("run", "bad", f"the run that is there cannot be read: {error}", "look at it: spot ls URL")
            return
        newest = next((each for each in listing.steps if each.is_newest), None)
        if newest is None:
            yield Finding("run", "warning", "a run is there without a committed step", "look at it: spot ls URL")
            return
        age_s = 0.0 if newest.modified_at is None else max(0.0, wall_time() - newest.modified_at)
        yield Finding("run", "good", f"a training continues at step {newest.step}, stored {seconds(age_s)} ago")


def _or_shard(nodes: int | None, now: int) -> str:
    return "" if nodes is None or nodes <= now else f", or store it from {nodes} machines, with a sharded state"
