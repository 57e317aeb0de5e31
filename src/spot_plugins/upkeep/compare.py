"""The comparison of two steps of a run: their tensors, and the plain values of their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from ..format.boxes import Box
from ..format.commit import NUM_GETS
from ..format.keys import StepId
from ..format.manifest import Json
from ..resume.plausible import ITEM_BYTES
from ..resume.stored import no_damage_if_pruned, open_run
from ..resume.weights import Weight, read_weight
from .blobs import Room
from .tensors import StepTensors, TensorId, open_step
from .verify import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_ITEMS: Final = 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorDifference:
    """A tensor that differs between two steps."""

    name: TensorId
    before: str | None
    """Dtype and shape, as in ``F32[2, 3]``. None if the tensor was added."""
    after: str | None
    """The same afterwards. None if the tensor was removed."""
    num_items: int | None = None
    """Number of elements whose bytes differ, if dtype and shape are the same."""
    max_abs: float | None = None
    """Largest absolute difference of these elements. None if they are no floating-point numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueDifference:
    """A plain value of the state that differs between two steps."""

    path: str
    """Keys and indices that lead to the value, beginning with the name of the part."""
    rank: int
    before: Json
    """The value. None also if it is not there."""
    after: Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The result of :func:`compare`."""

    before: StepId
    after: StepId
    world_sizes: tuple[int, int]
    num_tensors_alike: int
    tensors: tuple[TensorDifference, ...]
    values: tuple[ValueDifference, ...]
    """Differences that rank 0 has too are not repeated for other ranks."""


def compare(
    url: str,
    before: int,
    after: int,
    *,
    report: Report = lambda step, done, total: None,
    storage_options: Mapping[str, Any] | None = None,
) -> Comparison:
    """
    Compare two committed steps of the run at *url*.

    Tensors whose pieces have the same hashes are not read. Of the others a few are in memory at a time.

    Raises:
        ConfigError: One of the steps is not there.
        CorruptCheckpointError, IncompatibleCheckpointError: One of the steps cannot be read.
        SpotError: A training has pruned one of the steps meanwhile.
        StoreError: The store does not answer.
    """
    store = open_run(url, storage_options)
    return compare_steps(open_step(store, before), open_step(store, after), report=report)


def compare_steps(
    one: StepTensors, other: StepTensors, *, report: Report = lambda step, done, total: None
) -> Comparison:
    """Compare two steps, which may be of two runs. Raises as :func:`compare`, but for the first error."""
    names = sorted({*one.tensors, *other.tensors}, key=str)
    found: list[TensorDifference] = []
    room = Room()

    def look(name: TensorId) -> TensorDifference | None:
        sizes = [each.tensors[name].num_bytes for each in (one, other) if name in each.tensors]
        with room.take(3 * sum(sizes)):  # the pieces of a tensor are in memory next to the whole
            return _tensor_difference(name, one, other)

    with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
        total = sum(each.num_bytes for each in other.tensors.values())
        done = 0
        for name, difference in zip(names, pool.map(look, names), strict=True):
            found += [] if difference is None else [difference]
            done += other.tensors[name].num_bytes if name in other.tensors else 0
            report(other.committed.step_id.step, done, total)
    return Comparison(
        before=one.committed.step_id,
        after=other.committed.step_id,
        world_sizes=(one.committed.world_size, other.committed.world_size),
        num_tensors_alike=len(names) - len(found),
        tensors=tuple(found),
        values=tuple(_value_differences(one, other)),
    )


def described(weight: Weight) -> str:
    """Return dtype and shape of *weight*."""
    return f"{weight.dtype}{[*weight.shape]}"


def _tensor_difference(name: TensorId, one: StepTensors, other: StepTensors) -> TensorDifference | None:
    before, after = one.tensors.get(name), other.tensors.get(name)
    if before is None or after is None or described(before) != described(after):
        texts = [None if each is None else described(each) for each in (before, after)]
        return TensorDifference(name=name, before=texts[0], after=texts[1])
    if _hashes(before) == _hashes(after):
        return None
    images = []
    for each in (one, other):
        step_id = each.committed.step_id
        with no_damage_if_pruned(each.store, step_id):
            images.append(read_weight(each.store, step_id.step, each.tensors[name]))
    num_items, max_abs = _distance(images[0], images[1], before.dtype)
    if not num_items:
        return None
    text = described(before)
    return TensorDifference(name=name, before=text, after=text, num_items=num_items, max_abs=max_abs)


def _hashes(weight: Weight) -> dict[Box, str]:
    return {Box(piece.offsets, piece.lengths): piece.xxh3_128 for _, piece in weight.pieces}


def _distance(one: memoryview, other: memoryview, dtype: str) -> tuple[int, float | None]:
    """Return how many elements differ, and their largest absolute difference if they are floating-point numbers."""
    import numpy as np

    item = ITEM_BYTES[dtype]
    edges = [*range(0, one.nbytes, _BLOCK_ITEMS * item), one.nbytes]
    num_items, largest = 0, 0.0
    numbers = _decoder(dtype)
    for start, stop in pairwise(edges):
        blocks = [np.frombuffer(image[start:stop], dtype=f"u{item}") for image in (one, other)]
        differs = blocks[0] != blocks[1]
        num_items += int(np.count_nonzero(differs))
        if numbers is not None and differs.any():
            with np.errstate(all="ignore"):
                gap = np.abs(numbers(blocks[0][differs]) - numbers(blocks[1][differs]))
            largest = float(np.max([largest, gap.max()]))  # not max(), which loses a NaN
    return num_items, largest if numbers is not None else None


def _decoder(dtype: str) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """Return a function from raw items to numbers of 64 bits. None for a type that is not floating-point."""
    import numpy as np

    match dtype:
        case "F64" | "F32" | "F16":
            return lambda items: items.view(f"f{ITEM_BYTES[dtype]}").astype(np.float64)
        case "BF16":
            return lambda items: (items.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        case "F8_E5M2":
            return lambda items: (items.view(np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float64)
        case "F8_E4M3":
            return lambda items: _e4m3()[items.view(np.uint8)]
        case "C64":
            return lambda items: items.view(np.complex64).astype(np.complex128)
    return None


def _e4m3() -> NDArray[np.float64]:
    """Return the number of each byte: a sign, 4 bits of exponent and 3 of mantissa, and no infinity."""
    import numpy as np

    byte = np.arange(128)
    exponent, mantissa = byte >> 3, (byte & 7) / 8
    numbers = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    numbers[127] = np.nan
    return np.concatenate([numbers, -numbers])


def _value_differences(one: StepTensors, other: StepTensors) -> Iterator[ValueDifference]:
    of_first: set[tuple[str, str, str]] = set()
    for manifest, other_manifest in zip(one.manifests, other.manifests, strict=False):
        before, after = (dict(_values(each.state)) for each in (manifest, other_manifest))
        for path in sorted({*before, *after}):
            values = before.get(path), after.get(path)
            if (path in before) == (path in after) and _same(*values):
                continue
            told = (path, repr(values[0]), repr(values[1]))
            if manifest.rank == 0:
                of_first.add(told)
            elif told in of_first:
                continue
            yield ValueDifference(path=path, rank=manifest.rank, before=values[0], after=values[1])


def _same(one: Json, other: Json) -> bool:
    return type(one) is type(other) and one == other


def _values(state: Json) -> Iterator[tuple[str, Json]]:
    """Yield the plain values in *state* with their paths. No recursion, because a forged state may be deep."""
    left: list[tuple[str, Json]] = [("", state)]
    while left:
        path, value = left.pop()
        inner: list[tuple[str, Json]] = []
        if isinstance(value, dict):
            inner = [(key, each) for key, each in value.items() if key != "$tensor"]
        elif isinstance(value, list):
            inner = [(str(index), each) for index, each in enumerate(value)]
        if inner:
            left += [(f"{path}/{key}" if path else key, each) for key, each in inner]
        elif not isinstance(value, dict) or not value:
            yield path, value
