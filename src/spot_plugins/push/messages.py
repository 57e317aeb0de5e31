"""
Messages between the training process and its pusher, over a socket pair.

A message is a JSON object after its length in 8 bytes. A file descriptor may travel with it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import threading
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Final

from xxhash import xxh3_128_hexdigest

from .. import events
from ..events import Event
from ..format.keys import StepId, blob_key, frozen_key
from ..format.manifest import Blob, Json, RankManifest, TensorSlice, hash_of_blob

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
"""Signals to a job. They end a trainer but not its pusher. SLURM sends them to every process."""

SEND_S: Final = 30.0
"""Longest wait in seconds for the other side to take a part of a message. It has a thread that only receives."""

_LENGTH: Final = struct.Struct("<Q")
_TIMEVAL: Final = struct.Struct("@ll")
_PUSHER_EVENTS: Final = (
    events.WrittenLocally,
    events.LocalWriteFailed,
    events.PushFailing,
    events.StoreDamaged,
    events.Committed,
    events.SharesCounted,
    events.ShareFinished,
    events.ShareNotFinished,
    events.SaveAbandoned,
    events.Superseded,
    events.Pruned,
    events.Kept,
    events.KeepFailed,
    events.Released,
)
_EVENT_TYPES: Final = {kind.__name__: kind for kind in _PUSHER_EVENTS}


@dataclass(frozen=True, kw_only=True, slots=True)
class PushSettings:
    """Settings that a pusher process gets in its first message."""

    url: str
    storage_options: dict[str, Any] = field(repr=False)  # they contain secrets
    local_dir: str | None
    rank: int
    world_size: int
    attempt: int
    """Number of the attempt. 0 before it is claimed: the process then proves the store first."""
    keep_last: int
    keep_every: int | None
    hurries: bool = False
    """True if the machine will be taken, so that the process keeps its normal priority."""


class FrozenUse(str, Enum):
    """Relation of one step to the blobs of frozen weights, which several steps share."""

    NONE = "none"
    """The step shares no blobs: it has no frozen weights, or it stores them as its own."""
    BRINGS = "brings"
    """The job has the frozen blobs of its set among its blobs, to be stored under keys of their content."""
    REFERS = "refers"
    """The frozen blobs of its set were stored by an earlier job, and belong to this step too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobImage:
    """Position of the finished bytes of one blob in a shared buffer."""

    buffer: int
    """Number of the shared buffer."""
    offset: int
    num_bytes: int
    is_frozen: bool = False
    """True if it is stored under a key of its own content, so that other steps can share it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushJob:
    """One staged step of one rank. Its buffers belong to the pusher until it sends ``released``."""

    step: int
    blobs: tuple[BlobImage, ...]
    tensors: tuple[TensorSlice, ...]
    state: Json
    frozen_use: FrozenUse = FrozenUse.NONE
    frozen_set: int = 0
    """Number of the set of frozen blobs that the job brings or refers to. 0 if it does neither."""
    again: bool = False
    """True if the step was handed over before and the outcome was lost: it may be committed already."""
    buffers: tuple[int, ...] = ()
    """Numbers of all buffers that the trainer lends for the step, also of those without a blob. Set when it is sent."""
    is_prepared: bool = False
    """True if the manifest is put early under another name, so that another rank can store the shared blobs."""
    of_rank: int | None = None
    """The rank that has ended and whose shared blobs these are. None if they are of the rank of the process."""


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """A blob with all its hashes."""

    blob: Blob
    tensors: tuple[TensorSlice, ...]
    """The slices in it. Their index of the blob has no meaning before :func:`manifest_of` has set it."""


@dataclass(frozen=True, slots=True)
class StoredFrozen:
    """A set of frozen blobs that is stored. The trainer keeps it for the next pusher process."""

    number: int
    blobs: tuple[SealedBlob, ...]


def seal(job: PushJob, index: int, image: memoryview, inside: list[TensorSlice], settings: PushSettings) -> SealedBlob:
    """Return blob *index* of *job*, whose bytes are *image* with the slices *inside*, with its key and its hashes."""
    tensors = tuple(replace(piece, xxh3_128=xxh3_128_hexdigest(image[piece.start : piece.stop])) for piece in inside)
    blob_hash = hash_of_blob(image[: min(piece.start for piece in inside)], tensors)
    step_id = StepId(job.step, settings.attempt)
    key = frozen_key(blob_hash) if job.blobs[index].is_frozen else blob_key(step_id, settings.rank, index)
    return SealedBlob(Blob(key=key, num_bytes=len(image), xxh3_128=blob_hash), tensors)


def manifest_of(job: PushJob, sealed: list[SealedBlob], settings: PushSettings) -> RankManifest:
    """Return the manifest of *job*, whose blobs are *sealed*."""
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
    return PushJob(
        **{
            **body,
            "buffers": tuple(body["buffers"]),
            "blobs": tuple(BlobImage(**image) for image in body["blobs"]),
            "tensors": tuple(map(_decode_slice, body["tensors"])),
            "frozen_use": FrozenUse(body["frozen_use"]),
        }
    )


def encode_frozen(frozen: StoredFrozen) -> dict[str, Any]:
    """Return *frozen* as a message body."""
    return {"frozen": frozen.number, "blobs": [asdict(each) for each in frozen.blobs]}


def decode_frozen(body: dict[str, Any]) -> StoredFrozen:
    """Read what :func:`encode_frozen` wrote."""
    return StoredFrozen(
        body["frozen"],
        tuple(SealedBlob(Blob(**each["blob"]), tuple(map(_decode_slice, each["tensors"]))) for each in body["blobs"]),
    )


def _decode_slice(entry: dict[str, Any]) -> TensorSlice:
    return TensorSlice(**{**entry, **{name: tuple(entry[name]) for name in ("shape", "offsets", "lengths")}})


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepRequest:
    """The wish to keep a step, or to release it. An event of the process answers it."""

    step: int
    owner: str
    keeps: bool
    """False to release it."""
    is_saving: bool = False
    """True if this attempt is just saving the step. See :func:`spot_plugins.format.kept.keep`."""


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """The wish to remove old steps once more, because the training has ended. The message ``pruned`` answers it."""


def encode_wish(request: KeepRequest | PruneRequest) -> dict[str, Any]:
    """Return *request* as a message body."""
    return {"wish": asdict(request)}


def decode_wish(body: dict[str, Any]) -> KeepRequest | PruneRequest:
    """Read what :func:`encode_wish` wrote."""
    return KeepRequest(**body["wish"]) if body["wish"] else PruneRequest()


def encode_event(event: Event) -> dict[str, Any]:
    """Return *event* as a message body."""
    assert isinstance(event, _PUSHER_EVENTS)
    return {"event": type(event).__name__, "fields": asdict(event)}


def decode_event(body: dict[str, Any]) -> Event:
    """Read what :func:`encode_event` wrote."""
    fields: dict[str, Any] = body["fields"]
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
    return _EVENT_TYPES[body["event"]](**fields)


class Channel:
    """One end of the socket pair. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        # Of the kernel's own kind: a timeout of Python's socket would hold for receiving, too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(SEND_S), 0))
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """
        Send one message, with a descriptor if given.

        Raises:
            OSError: The other side is gone or takes nothing, this end is closed, or the system has no memory for it.
                A part of the message may be sent. Nothing can be sent after it.
        """
        data = json.dumps(message).encode()
        with self._sending:
            # wait: SEND_S, set in the kernel; the pusher is killed and a new one is started
            socket.send_fds(self._sock, [_LENGTH.pack(len(data))], [] if fd is None else [fd])
            # wait: SEND_S for each part, set in the kernel; the pusher is killed and a new one is started
            self._sock.sendall(data)

    def receive(self) -> tuple[dict[str, Any], int | None]:
        """
        Wait for one message. Return it and the descriptor that came with it, which this process now owns.

        Raises:
            EOFError: The other side is gone.
            OSError: This end was shut down.
        """
        # wait: until a message comes or the other process is gone; a thread of its own, or the pusher's main thread
        head, fds, _, _ = socket.recv_fds(self._sock, _LENGTH.size, 1)
        head += _read(self._sock, _LENGTH.size - len(head)) if head else b""
        if not head:
            raise EOFError
        message = json.loads(_read(self._sock, _LENGTH.unpack(head)[0]))
        return message, fds[0] if fds else None

    def shut_down(self) -> None:
        """End the connection, also for a thread that is sending or receiving."""
        with contextlib.suppress(OSError):  # the other side has ended it before
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end after :meth:`receive` has failed. A thread that is sending is waited for."""
        with self._sending:  # its descriptor may be another file's as soon as it is closed
            self._sock.close()

    def close_in_child(self) -> None:
        """Close a forked child's copy. The lock may be held for ever by a thread that the child does not have."""
        self._sock.close()


def _read(sock: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        # wait: until the message is complete or the other process is gone, because a sender has SEND_S; a thread of its
        # own
        chunk = sock.recv(min(num_bytes - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
