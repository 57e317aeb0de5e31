"""
The JSON that says what one rank stored for one step. Written canonically: equal content, equal bytes.

It holds no timestamps, no host names and no pickle, and it carries a hash of itself, so that a flipped
bit is seen before a number is believed. ``docs/format.md`` is the contract.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias, TypeVar

import xxhash

from .keys import StepId

FORMAT: Final = 1
"""Version of the layout that this software writes, and the newest that it reads."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class ManifestError(ValueError):
    """Bytes that are not a manifest, or one that this software must not read. Says why."""


class NewerFormatError(ManifestError):
    """A manifest of a newer format than this software knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """One stored object: a safetensors file."""

    key: str
    num_bytes: int
    xxh3_128: str
    """Hash of the whole object, 32 hexadecimal digits, as :func:`hash_of_blob` computes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSlice:
    """A box of one tensor, stored in one blob, row-major and contiguous."""

    name: str
    dtype: str
    """As safetensors spells it: ``F32``, ``BF16``, ``I64``, ..."""
    shape: tuple[int, ...]
    """Global shape of the whole tensor."""
    offsets: tuple[int, ...]
    """Where the box begins, one per dimension; empty for a scalar."""
    lengths: tuple[int, ...]
    """Extent of the box, one per dimension."""
    shared: bool
    """Whether it is part of one tensor of all ranks, or of this rank's own, of which every rank has another."""
    blob: int
    """Index into the manifest's blobs."""
    start: int
    """First byte within the blob."""
    stop: int
    """One past the last byte within the blob."""
    xxh3_128: str = ""
    """Hash of these bytes, for who reads only them. Empty until they are pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankManifest:
    """Everything one rank stored for one step."""

    step_id: StepId
    rank: int
    world_size: int
    blobs: tuple[Blob, ...]
    tensors: tuple[TensorSlice, ...]
    state: Json
    """The Python state of this rank, as ``spot_plugins.state`` encodes it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs of this rank."""
        return sum(blob.num_bytes for blob in self.blobs)

    def encode(self) -> bytes:
        """Return the canonical bytes: sorted keys, no spaces, one trailing newline."""
        document = {
            "format": FORMAT,
            "step": self.step_id.step,
            "attempt": self.step_id.attempt,
            "rank": self.rank,
            "world_size": self.world_size,
            "blobs": [asdict(blob) for blob in self.blobs],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "state": self.state,
        }
        document["xxh3_128"] = xxhash.xxh3_128_hexdigest(canonical_json(document))
        return canonical_json(document)

    @classmethod
    def decode(cls, data: bytes) -> RankManifest:
        """
        Read what :meth:`encode` wrote.

        Raises:
            NewerFormatError: It was written by newer software.
            ManifestError: *data* is not a manifest: cut off, damaged or something else.
        """
        try:
            document = json.loads(data)
            written = document.pop("xxh3_128", None)
            # First the hash: a flipped bit must not make a damaged manifest one of newer software.
            if written not in (None, xxhash.xxh3_128_hexdigest(canonical_json(document))):
                raise ManifestError("its content does not match its own hash")
            _check_format(document["format"])
            if written is None:
                raise ManifestError("it has no hash of itself")
            return cls(
                step_id=StepId(document["step"], document["attempt"]),
                rank=document["rank"],
                world_size=document["world_size"],
                blobs=tuple(_checked(Blob(**blob)) for blob in document["blobs"]),
                tensors=tuple(_checked(_slice(tensor)) for tensor in document["tensors"]),
                state=document["state"],
            )
        except ManifestError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ManifestError(f"not a manifest: {error!r}") from error


def encode_merged(manifests: list[RankManifest]) -> bytes:
    """Return a copy of *manifests*, those of all ranks in their order, one per line."""
    return b"".join(manifest.encode() for manifest in manifests)


def decode_merged(data: bytes) -> list[RankManifest]:
    """
    Read what :func:`encode_merged` wrote.

    Raises:
        ManifestError: *data* is cut off or damaged; the manifests of the single ranks may be intact.
    """
    return [RankManifest.decode(line) for line in data.splitlines()]


def hash_of_blob(header: bytes | memoryview, tensors: Iterable[TensorSlice]) -> str:
    """
    Return the hash of a blob whose slices are hashed: no byte of it is read a second time.

    It is that of *header*, all that is in front of the first slice, followed by the hashes of *tensors*, the slices in
    it, in the order of their places.
    """
    digest = xxhash.xxh3_128(header)
    for piece in sorted(tensors, key=lambda each: each.start):
        if piece.stop > piece.start:
            digest.update(bytes.fromhex(piece.xxh3_128))
    return digest.hexdigest()


def canonical_json(document: Any) -> bytes:
    """Return *document* as JSON in the one form that all manifests use."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _check_format(version: int) -> None:
    if version > FORMAT:
        raise NewerFormatError(
            f"format {version} is newer than {FORMAT}, the newest this software reads; upgrade spot_plugins"
        )
    if version < FORMAT or version is True:
        raise ManifestError(f"{version!r} is no format")


_T = TypeVar("_T", Blob, TensorSlice)

_IS: Final[dict[Any, Callable[[Any], bool]]] = {
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int,
    "tuple[int, ...]": lambda value: all(type(item) is int for item in value),
}


def _checked(value: _T) -> _T:
    """Return *value*, which came out of JSON, if its fields are of the types that they are declared with."""
    for field in fields(value):
        if not _IS[field.type](getattr(value, field.name)):
            raise TypeError(f"{field.name} is no {field.type}")
    return value


def _slice(entry: dict[str, Any]) -> TensorSlice:
    boxes = {name: tuple(entry[name]) for name in ("shape", "offsets", "lengths")}
    return TensorSlice(**{**entry, **boxes})
