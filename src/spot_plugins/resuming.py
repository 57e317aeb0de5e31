"""Back from the store: the newest committed step that is intact on all ranks, verified before it is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import xxhash

from . import events
from .commit import CommittedStep, committed_steps
from .errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    NothingToResumeError,
    SpotError,
    StoreError,
)
from .events import Event
from .keys import StepId, rank_manifest_key
from .manifest import Blob, ManifestError, NewerFormatError, RankManifest, TensorSlice
from .ranks import Board, Ranks, exchange
from .staging import find_nonsense
from .staging.plan import DTYPES
from .state import decode
from .store import LocalStore, ObjectStore, patiently

NUM_GETS: Final = 8  # gets in flight

_TORCH_DTYPES: Final = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A step in host memory: complete, and every byte of it verified."""

    step_id: StepId
    state: dict[str, Any]
    """State by the name of its part."""
    num_bytes: int
    from_local_bytes: int


def load_newest(
    store: ObjectStore,
    local: LocalStore | None,
    url: str,
    ranks: Ranks,
    board: Board,
    tell: Callable[[Event], None],
) -> LoadedStep | None:
    """
    Read the newest committed step that is intact on all ranks. Every rank calls this and gets the same step.

    1. rank 0: list the committed steps;
    2. every rank: read its part of the newest and verify it;
    3. if anything is damaged on any rank: all take the one before.

    Returns:
        The step, or None when nothing was ever committed.

    Raises:
        NothingToResumeError: Steps were committed, but all of them are damaged. Training from scratch then
            would hide the loss, so it is left to a person.
        IncompatibleCheckpointError: The newest step was written by newer software or by another number of ranks.
        StoreError: The store does not answer.
    """
    found, problem = _attempt(lambda: _list_steps(store)) if ranks.rank == 0 else ([], None)
    _raise_shared(exchange(ranks, board, "resume/found", problem))
    steps = cast("list[list[int]]", exchange(ranks, board, "resume/steps", cast("Any", found))[0])
    rejected: list[str] = []
    for number, (step, attempt, world_size) in enumerate(steps):
        committed = CommittedStep(StepId(step, attempt), world_size)
        reader = _Reader(store, local, committed, ranks)
        loaded, problem = _attempt(reader.read)
        problems = exchange(ranks, board, f"resume/read/{number}", problem)
        _raise_shared([p for p in problems if p is not None and p["kind"] != "damaged"])  # type: ignore[index, call-overload]
        damages = [str(p["text"]) for p in problems if p is not None]  # type: ignore[index, call-overload]
        if not damages:
            return cast("LoadedStep", loaded)
        rejected.append(damages[0])
        tell(events.CheckpointRejected(step=step, attempt=attempt, reason=damages[0]))
    if rejected:
        raise NothingToResumeError(
            url,
            f"all {len(rejected)} committed steps are damaged ({rejected[0]}). Bring back older object "
            f"versions, or start anew at another URL",
        )
    return None


def _list_steps(store: ObjectStore) -> list[list[int]]:
    committed = patiently(lambda: committed_steps(store))
    return [[*step.step_id, step.world_size] for step in committed]


def _attempt(action: Callable[[], Any]) -> tuple[Any, dict[str, Any] | None]:
    """Return the result of *action*, or what went wrong in a form that other ranks can read."""
    try:
        return action(), None
    except CorruptCheckpointError as error:
        return None, {"kind": "damaged", "text": str(error)}
    except IncompatibleCheckpointError as error:
        return None, {"kind": "incompatible", "step": error.step, "text": error.reason}
    except StoreError as error:
        return None, {"kind": "store", "operation": error.operation, "key": error.key, "text": error.reason}


def _raise_shared(problems: list[Any]) -> None:
    """Raise on every rank what went wrong on any."""
    for problem in problems:
        if problem is None:
            continue
        if problem["kind"] == "incompatible":
            raise IncompatibleCheckpointError(problem["step"], problem["text"])
        if problem["kind"] == "store":
            raise StoreError(problem["operation"], problem["key"], problem["text"])


class _Reader:
    """Reads this rank's share of one committed step."""

    def __init__(self, store: ObjectStore, local: LocalStore | None, committed: CommittedStep, ranks: Ranks) -> None:
        self._store = store
        self._local = local
        self._committed = committed
        self._ranks = ranks

    def read(self) -> LoadedStep:
        """Read and verify everything, then return it."""
        step_id, world_size = self._committed.step_id, self._committed.world_size
        if world_size != self._ranks.world_size:
            raise IncompatibleCheckpointError(
                step_id.step,
                f"it was saved by {world_size} ranks and this job has {self._ranks.world_size}: start it with "
                f"{world_size}. Resuming on another number of ranks is not supported yet",
            )
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
            manifests = list(pool.map(self._manifest, range(world_size)))
            own = manifests[self._ranks.rank]
            wanted = [(own, piece) for piece in own.tensors if not piece.replicated]
            wanted += [(other, piece) for other in manifests for piece in other.tensors if piece.replicated]
            if (nonsense := find_nonsense(wanted)) is not None:
                raise CorruptCheckpointError(step_id.step, step_id.prefix, f"makes no sense: {nonsense}")
            tensors = {piece.name: _empty(piece) for _, piece in wanted}
            by_blob: defaultdict[Blob, list[TensorSlice]] = defaultdict(list)
            for manifest, piece in wanted:
                by_blob[manifest.blobs[piece.blob]].append(piece)
            reads = [pool.submit(self._fill, blob, pieces, tensors) for blob, pieces in by_blob.items()]
            from_local_bytes = sum(read.result() for read in reads)
        try:
            state = decode(own.state, tensors)
        except ValueError as error:
            raise CorruptCheckpointError(step_id.step, step_id.prefix, f"holds unreadable state: {error}") from error
        if not isinstance(state, dict):
            raise CorruptCheckpointError(step_id.step, step_id.prefix, "holds no state by the names of parts")
        num_bytes = sum(blob.num_bytes for blob in by_blob)
        return LoadedStep(step_id, state, num_bytes, from_local_bytes)

    def _manifest(self, rank: int) -> RankManifest:
        step_id = self._committed.step_id
        key = rank_manifest_key(step_id, rank, self._committed.world_size)
        try:
            manifest = RankManifest.decode(patiently(lambda: self._store.get(key)))
        except KeyError:
            raise CorruptCheckpointError(step_id.step, key, "is gone") from None
        except NewerFormatError as error:
            raise IncompatibleCheckpointError(step_id.step, str(error)) from error
        except ManifestError as error:
            raise CorruptCheckpointError(step_id.step, key, f"is damaged: {error}") from error
        if (manifest.step_id, manifest.rank, manifest.world_size) != (step_id, rank, self._committed.world_size):
            raise CorruptCheckpointError(step_id.step, key, "is the manifest of another step or rank")
        return manifest

    def _fill(self, blob: Blob, slices: list[TensorSlice], tensors: dict[str, torch.Tensor]) -> int:
        """Copy *slices* of *blob* to where they belong. Return how many bytes came from the local disk."""
        bytes_, is_local = self._read(blob)
        data = torch.frombuffer(bytes_, dtype=torch.uint8)
        for piece in slices:
            source = data[piece.start : piece.stop].view(_TORCH_DTYPES[piece.dtype]).view(piece.lengths)
            target = tensors[piece.name]
            for dim, (offset, length) in enumerate(zip(piece.offsets, piece.lengths, strict=True)):
                target = target.narrow(dim, offset, length)
            target.copy_(source)
        return blob.num_bytes if is_local else 0

    def _read(self, blob: Blob) -> tuple[bytearray, bool]:
        """Return the verified bytes of *blob*, and whether an intact copy on the local disk gave them."""
        if self._local is not None:
            try:
                data = self._local.get(blob.key)
            except (KeyError, StoreError):
                pass
            else:
                if _damage(data, blob) is None:
                    return bytearray(data), True
        try:
            data = patiently(lambda: self._store.get(blob.key))
        except KeyError:
            raise CorruptCheckpointError(self._committed.step_id.step, blob.key, "is gone") from None
        if (damage := _damage(data, blob)) is not None:
            raise CorruptCheckpointError(self._committed.step_id.step, blob.key, damage)
        return bytearray(data), False


def _damage(data: bytes, blob: Blob) -> str | None:
    """Return how *data* differs from what the manifest says of *blob*, or None."""
    if len(data) != blob.num_bytes:
        return f"has {len(data)} bytes instead of {blob.num_bytes}"
    if xxhash.xxh3_128_hexdigest(data) != blob.xxh3_128:
        return "has changed since it was written: its hash differs"
    return None


def _empty(piece: TensorSlice) -> torch.Tensor:
    return torch.empty(piece.shape, dtype=_TORCH_DTYPES[piece.dtype])


def apply_state(loaded: LoadedStep, parts: list[tuple[str, Any]]) -> None:
    """
    Give each part its state back.

    Raises:
        IncompatibleCheckpointError: The checkpoint and the parts do not belong together.
    """
    step = loaded.step_id.step
    expected, present = {name for name, _ in parts}, set(loaded.state)
    if expected != present:
        raise IncompatibleCheckpointError(
            step,
            f"this job has no {sorted(present - expected)} and the checkpoint has no {sorted(expected - present)}. "
            f"Register the same parts as when it was saved, or start anew at another URL",
        )
    for name, part in parts:
        try:
            part.load_state_dict(loaded.state[name])
        except SpotError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise IncompatibleCheckpointError(
                step,
                f"its {name!r} does not fit: {error}. Use the model and settings it was saved with, or start "
                f"anew at another URL",
            ) from error
