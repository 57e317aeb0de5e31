"""The tensors of a committed step, from the manifests of all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..format.boxes import Box
from ..format.commit import CommittedStep
from ..format.manifest import RankManifest, TensorSlice
from ..resume.stored import choose_step, no_damage_if_pruned, open_run
from ..resume.weights import Weight
from ..store import ObjectStore
from .blobs import whole_manifests


class TensorId(NamedTuple):
    """A tensor of a step."""

    name: str
    """The path of the tensor in the state. It begins with the name of its part."""
    rank: int | None
    """The rank that has the tensor for itself. None for a tensor that all ranks share."""

    @property
    def part(self) -> str:
        """The name of the part of the training that the tensor belongs to."""
        return self.name.partition("/")[0]

    def __str__(self) -> str:
        return self.name if self.rank is None else f"{self.name} of rank {self.rank}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTensors:
    """A committed step, opened."""

    store: ObjectStore
    committed: CommittedStep
    manifests: Sequence[RankManifest]
    tensors: Mapping[TensorId, Weight]
    """The tensors, in the order of their names."""


def open_step(store: ObjectStore, step: int) -> StepTensors:
    """
    Read the manifests of the committed step *step*.

    Raises:
        ConfigError: There is no such step.
        CorruptCheckpointError, IncompatibleCheckpointError: A manifest cannot be read.
        SpotError: A training has pruned the step meanwhile.
        StoreError: The store does not answer.
    """
    committed = choose_step(store, step)
    with no_damage_if_pruned(store, committed.step_id):
        manifests = whole_manifests(store, committed)
    pieces: defaultdict[TensorId, dict[Box, tuple[RankManifest, TensorSlice]]] = defaultdict(dict)
    for manifest in manifests:
        for piece in manifest.tensors:
            name = TensorId(piece.name, None if piece.shared else manifest.rank)
            pieces[name].setdefault(Box(piece.offsets, piece.lengths), (manifest, piece))
    tensors = {}
    for name in sorted(pieces, key=lambda each: (each.name, -1 if each.rank is None else each.rank)):
        found = tuple(pieces[name].values())
        tensors[name] = Weight(name=name.name, dtype=found[0][1].dtype, shape=found[0][1].shape, pieces=found)
    return StepTensors(store=store, committed=committed, manifests=manifests, tensors=tensors)


def step_tensors(url: str, step: int, storage_options: Mapping[str, Any] | None = None) -> StepTensors:
    """Open the committed step *step* of the run at *url*. Raises as :func:`open_step`."""
    return open_step(open_run(url, storage_options), step)
