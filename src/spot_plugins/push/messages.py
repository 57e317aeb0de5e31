"""
What the training process and its pusher say to each other, over a socket pair.

A message is a JSON object behind its length in 8 bytes; a file descriptor may travel with it.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from xxhash import xxh3_128_hexdigest

from .. import events
from ..events import Event
from ..format.keys import StepId, blob_key, frozen_key
from ..format.manifest import Blob, Json, RankManifest, TensorSlice, hash_of_blob

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
"""Signals to a job, which end a trainer and not its pusher. SLURM sends them to every process."""

_LENGTH: Final = struct.Struct("<Q")
_TOLD_BY_PUSHER: Final = (
    events.WrittenLocally,
    events.LocalWriteFailed,
    events.PushFailing,
    events.Committed,
    events.SaveAbandoned,
    events.Superseded,
    events.Pruned,
)
_EVENT_TYPES: Final = {kind.__name__: kind for kind in _TOLD_BY_PUSHER}


@dataclass(frozen=True, kw_only=True, slots=True)
class PushSettings:
    """What a pusher needs to know once."""

    url: str
    storage_options: dict[str, Any]
    local_dir: str | None
    rank: int
    world_size: int
    attempt: int
    keep_last: int
    keep_every: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobImage:
    """Where in a shared buffer the finished bytes of one blob lie."""

    buffer: int
    """Number of the shared buffer."""
    offset: int
    num_bytes: int
    is_frozen: bool = False
    """Whether it goes under a key of its own content, which other steps share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushJob:
    """One staged step of one rank. Its buffers belong to the pusher until it says ``released``."""

    step: int
    blobs: tuple[BlobImage, ...]
    tensors: tuple[TensorSlice, ...]
    state: Json
    frozen: int | None = None
    """Number of the set of frozen blobs that the step has: those in ``blobs``, or if there are none of these, the
    ones that an earlier job brought under this number."""
    again: bool = False
    """Whether an earlier push of this step was lost: it may have been committed before."""


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """A blob with all its hashes."""

    blob: Blob
    tensors: tuple[TensorSlice, ...]
    """The slices in it. Their index of the blob is of no meaning before :func:`manifest_of` has set it."""


def seal(job: PushJob, index: int, image: memoryview, inside: list[TensorSlice], settings: PushSettings) -> SealedBlob:
    """Return blob *index* of *job*, whose bytes are *image* with the slices *inside*, with its key and its hashes."""
    tensors = tuple(replace(piece, xxh3_128=xxh3_128_hexdigest(image[piece.start : piece.stop])) for piece in inside)
    blob_hash = hash_of_blob(image[: min(piece.start for piece in inside)], tensors)
    step_id = StepId(job.step, settings.attempt)
    key = frozen_key(blob_hash) if job.blobs[index].is_frozen else blob_key(step_id, settings.rank, index)
    return SealedBlob(Blob(key=key, num_bytes=len(image), xxh3_128=blob_hash), tensors)


def manifest_of(job: PushJob, sealed: list[SealedBlob], settings: PushSettings) -> RankManifest:
    """Return the manifest of *job*, which is made of *sealed*."""
    return RankManifest(
        step_id=StepId(job.step, settings.attempt),
        rank=settings.rank,
        world_size=settings.world_size,
        blobs=tuple(each.blob for each in sealed),
        tensors=tuple(replace(piece, blob=index) for index, each in enumerate(sealed) for piece in each.tensors),
        state=job.state,
    )


def encode_job(job: PushJob) -> dict[str, Any]:
    """Return *job* as a message body. Training waits for it; ``asdict`` copies, and takes ten times as long."""
    body = _fields(job)
    return body | {"blobs": [_fields(blob) for blob in job.blobs], "tensors": [_fields(each) for each in job.tensors]}


def _fields(value: PushJob | BlobImage | TensorSlice) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def decode_job(body: dict[str, Any]) -> PushJob:
    """Read what :func:`encode_job` wrote."""
    tensors = (
        TensorSlice(**{**entry, **{name: tuple(entry[name]) for name in ("shape", "offsets", "lengths")}})
        for entry in body["tensors"]
    )
    blobs = (BlobImage(**image) for image in body["blobs"])
    return PushJob(**{**body, "blobs": tuple(blobs), "tensors": tuple(tensors)})


def encode_event(event: Event) -> dict[str, Any]:
    """Return *event* as a message body."""
    assert isinstance(event, _TOLD_BY_PUSHER)
    return {"event": type(event).__name__, "fields": asdict(event)}


def decode_event(body: dict[str, Any]) -> Event:
    """Read what :func:`encode_event` wrote."""
    return _EVENT_TYPES[body["event"]](**body["fields"])


def send(sock: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    """Send one message, with a descriptor if given. Raises :exc:`OSError` when the other side is gone."""
    data = json.dumps(message).encode()
    socket.send_fds(sock, [_LENGTH.pack(len(data))], [] if fd is None else [fd])
    sock.sendall(data)


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """
    Wait for one message. Return it and the descriptor that came along, now this process' own.

    Raises:
        EOFError: The other side is gone.
    """
    head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, 1)
    head += _read(sock, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError
    message = json.loads(_read(sock, _LENGTH.unpack(head)[0]))
    return message, fds[0] if fds else None


def _read(sock: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        chunk = sock.recv(min(num_bytes - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
