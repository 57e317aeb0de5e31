"""
The weights of a committed step, joined from the shards of all ranks, without torch and without running any code.

Everything that is read comes from a bucket, so every byte is compared with its hash, and every number is checked before
it is used. The names of tensors go into the result only, never into a path.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import xxhash

from ..errors import GONE, ConfigError, CorruptCheckpointError
from ..format.boxes import Box
from ..format.commit import NUM_GETS
from ..format.keys import StepId
from ..format.manifest import Json, RankManifest, TensorSlice
from ..store import ObjectStore, patiently
from .manifests import manifests_of
from .plausible import ITEM_BYTES, UNCHECKED_BYTES, find_nonsense
from .stored import choose_step, no_damage_if_pruned, open_run

KINDS: Final = ("parameters", "buffers", "extra")
"""Keys of the state of a model."""

READ_AHEAD_BYTES: Final = 256 * 1024**2
"""Most bytes of tensors that are in memory while they are read in parallel. A larger tensor is there alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One tensor of a module: its name there, and the stored pieces that make it up."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[RankManifest, TensorSlice], ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class Weights:
    """
    The weights of one committed step.

    Args:
        store: The store of the run.
        step_id: The step.
        manifests: The manifests of all ranks.
        part: The name of the model in the state, such as ``model-1``. None: the only one.
        module: The module of the model whose weights these are, such as ``model``. None: the whole model.

    Raises:
        ConfigError: There is no such model or module, or *part* is None and there are several models.
        CorruptCheckpointError: The manifests make no sense.
    """

    def __init__(
        self,
        store: ObjectStore,
        step_id: StepId,
        manifests: list[RankManifest],
        part: str | None,
        module: str | None = None,
    ) -> None:
        self._store = store
        self.step_id = step_id
        """The step."""
        self.manifests = manifests
        """The manifests of all ranks."""
        self.part = part = _choose_part(manifests, part)
        """The name of the model in the state."""
        self.is_whole = module is None and len(parts_with(manifests, KINDS)) == 1
        """True if there is no other model, and no module of this one was chosen."""
        self.left_out: list[str] = []
        """Names of extra state that is no tensor, and that a file of tensors cannot hold."""
        nonsense = find_nonsense((manifest, piece) for manifest in manifests for piece in manifest.tensors)
        if nonsense is not None:
            raise self._corrupt(f"makes no sense: {nonsense}")
        self._pieces: defaultdict[str, dict[Box, tuple[RankManifest, TensorSlice]]] = defaultdict(dict)
        for manifest in manifests:
            for piece in manifest.tensors:
                if piece.shared or manifest.rank == 0:
                    self._pieces[piece.name].setdefault(Box(piece.offsets, piece.lengths), (manifest, piece))
        self.tensors = list(self._tensors(manifests, part))
        """The tensors, parameters before buffers."""
        if module is not None:
            self._choose_module(module)

    def read(self, tensors: Iterable[Weight] | None = None) -> Iterator[tuple[Weight, memoryview]]:
        """
        Yield each tensor with its bytes, row by row. A few tensors are read ahead, in parallel.

        About :data:`READ_AHEAD_BYTES` are in memory, or one tensor if that is larger, if the caller drops the bytes of
        each tensor before it takes the next one.

        Args:
            tensors: Some of the tensors, whose names may be other ones. None: all.

        Raises:
            CorruptCheckpointError: Bytes are damaged or missing.
            SpotError: A training has pruned the step meanwhile.
            StoreError: The store does not answer.
        """
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
            left = deque(self.tensors if tensors is None else tensors)
            reads: deque[tuple[Weight, Future[memoryview]]] = deque()
            held = 0
            while left or reads:
                while left and (not reads or held + left[0].num_bytes <= READ_AHEAD_BYTES):
                    held += left[0].num_bytes
                    reads.append((left[0], pool.submit(self._read, left.popleft())))
                weight, joined = reads.popleft()
                with no_damage_if_pruned(self._store, self.step_id):
                    # wait: until the client of the store gives up; the caller gets an error
                    image = joined.result()
                yield weight, image
                del joined, image  # of which the caller has none left, either, before the next one is read
                held -= weight.num_bytes

    def weight(self, name: str, stored: str) -> Weight:
        """Return the tensor *stored* of rank 0 or of all ranks, which may be of another part, under the name *name*."""
        pieces = tuple(self._pieces[stored].values())
        if not pieces or name == "__metadata__":
            raise self._corrupt(f"has no tensor {stored!r}")
        first = pieces[0][1]
        return Weight(name=name, dtype=first.dtype, shape=first.shape, pieces=pieces)

    def _read(self, weight: Weight) -> memoryview:
        return read_weight(self._store, self.step_id.step, weight)

    def _tensors(self, manifests: list[RankManifest], part: str) -> Iterator[Weight]:
        seen: set[str] = set()
        for manifest in manifests:  # a rank may hold no share of a tensor, and then does not name it
            document = entry_of(manifest.state, part)
            for kind in KINDS:
                for name, value in items_of(entry_of(document, kind)):
                    if name in seen:
                        continue
                    seen.add(name)
                    stored = value.get("$tensor") if isinstance(value, dict) else None
                    if isinstance(stored, str):
                        yield self.weight(name, stored)
                    elif kind == "extra":
                        self.left_out.append(name)
                    else:
                        raise ConfigError(f"{name} has a type that no safetensors file can hold, such as complex128")

    def _choose_module(self, module: str) -> None:
        """Keep the tensors of *module*, with the names that they have in it."""
        start = f"{module}."
        found = [replace(each, name=each.name[len(start) :]) for each in self.tensors if each.name.startswith(start)]
        if not found:
            modules = ", ".join(dict.fromkeys(each.name.partition(".")[0] for each in self.tensors if "." in each.name))
            raise ConfigError(f"module={module!r} has no tensors. The modules of this model are: {modules or 'none'}")
        self.tensors = found
        self.left_out = [name[len(start) :] for name in self.left_out if name.startswith(start)]

    def _corrupt(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(self.step_id.step, self.step_id.prefix, reason)


def read_weight(store: ObjectStore, step: int, weight: Weight) -> memoryview:
    """
    Return the bytes of a whole tensor, row by row.

    Raises:
        CorruptCheckpointError: Bytes are damaged or missing.
        StoreError: The store does not answer.
    """
    import numpy as np

    pieces = [(manifest.blobs[piece.blob].key, piece) for manifest, piece in weight.pieces]
    for key, piece in pieces:
        if piece.stop - piece.start > UNCHECKED_BYTES and not _has_byte(store, key, piece.stop - 1):
            raise _too_short(step, key, piece)
    image = np.zeros(weight.num_bytes, dtype=np.uint8)
    if len(pieces) == 1:
        _fetch(store, step, *pieces[0], image.data)
        return image.data
    whole = image.reshape(*weight.shape, ITEM_BYTES[weight.dtype])
    for key, piece in pieces:
        target = whole[tuple(slice(first, first + n) for first, n in zip(piece.offsets, piece.lengths, strict=True))]
        rows = target if target.flags.c_contiguous else np.empty(target.shape, dtype=np.uint8)
        _fetch(store, step, key, piece, rows.reshape(-1).data)
        if rows is not target:
            target[...] = rows
    return image.data


def _fetch(store: ObjectStore, step: int, key: str, piece: TensorSlice, image: memoryview) -> None:
    """Read the bytes of *piece* into *image*, and compare them with their hash."""
    try:
        count = patiently(lambda: store.get_into(key, piece.start, [image])) if image.nbytes else 0
    except KeyError:
        raise CorruptCheckpointError(step, key, GONE) from None
    if count != image.nbytes:
        raise _too_short(step, key, piece)
    if xxhash.xxh3_128_hexdigest(image) != piece.xxh3_128:
        raise CorruptCheckpointError(step, key, "has changed since it was written: its hash differs")


def _too_short(step: int, key: str, piece: TensorSlice) -> CorruptCheckpointError:
    return CorruptCheckpointError(step, key, f"has no {piece.stop - piece.start} bytes from {piece.start}")


def _has_byte(store: ObjectStore, key: str, position: int) -> bool:
    with suppress(KeyError):
        return patiently(lambda: store.get_into(key, position, [memoryview(bytearray(1))])) == 1
    return False


def open_weights(
    url: str,
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    module: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Weights:
    """Return the weights of a committed step, which are read later. See ``export_weights``."""
    store = open_run(url, storage_options)
    committed = choose_step(store, step, kept=kept)
    with no_damage_if_pruned(store, committed.step_id):
        manifests = manifests_of(store, committed)
    return Weights(store, committed.step_id, manifests, part, module)


def _choose_part(manifests: list[RankManifest], part: str | None) -> str:
    models = parts_with(manifests, KINDS)
    listed = ", ".join(models) or "none"
    if part is not None and part not in models:
        raise ConfigError(f"part={part!r} is not among the models of this run, which are: {listed}")
    if part is None and len(models) != 1:
        raise ConfigError(f"this run has these models: {listed}. Name one by part")
    return models[0] if part is None else part


def parts_with(manifests: Sequence[RankManifest], keys: Collection[str]) -> list[str]:
    """Return the names of the parts whose state has *keys*, in the order in which they were registered."""
    state = manifests[0].state
    return [name for name, value in items_of(state) if {*keys} <= {key for key, _ in items_of(value)}]


def entry_of(document: Json, key: str) -> Json:
    """Return the entry *key* of a stored dict, or None."""
    return document.get(key) if isinstance(document, dict) else None


def items_of(document: Json) -> Iterator[tuple[str, Json]]:
    """Yield the entries of a stored dict in their order. See "State" in docs/format.md."""
    if not isinstance(document, dict):
        return
    inner = document.get("$ordered_dict", document)
    document = inner if isinstance(inner, dict) else {}
    if isinstance(pairs := document.get("$dict"), list):
        for pair in pairs:
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
                yield pair[0], pair[1]
        return
    keys = sorted(document.keys() - {"$order"})
    order = document.get("$order")
    if isinstance(order, list) and sorted(map(str, order)) == sorted(map(str, range(len(keys)))):
        keys = [keys[int(str(position))] for position in order]
    yield from ((key, document[key]) for key in keys)
