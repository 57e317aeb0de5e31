"""
Manifest: the JSON list of the blobs and slices that one rank stored for one step. Equal content gives equal bytes.

A manifest holds no timestamps, no host names and no pickle. It holds a hash of itself, so that a flipped bit is found
before any number is used. ``docs/format.md`` describes every field.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias, TypeVar

import xxhash

from .keys import StepId, is_blob_key

FORMAT: Final = 1
"""Version of the format that this software writes. It reads no newer version."""

MAX_MANIFEST_BYTES: Final = 64 * 1024**2
"""Largest manifest. A slice takes about 300 bytes in it."""

MAX_MANIFEST_VALUES: Final = 7_000_000
"""Largest number of values in a manifest. A slice has about 25. Each may take 70 bytes of memory and 3 in the file."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class ManifestError(ValueError):
    """Bytes that are not a manifest, or a manifest that this software must not read. The message gives the reason."""


class NewerFormatError(ManifestError):
    """A manifest in a newer format than this software can read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """One stored safetensors file."""

    key: str
    num_bytes: int
    xxh3_128: str
    """Hash of the object by :func:`hash_of_blob`, as 32 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSlice:
    """A box of one tensor, stored in one blob, row-major and contiguous."""

    name: str
    dtype: str
    """Name of the dtype in safetensors: ``F32``, ``BF16``, ``I64``, ..."""
    shape: tuple[int, ...]
    """Shape of the whole tensor, over all ranks."""
    offsets: tuple[int, ...]
    """First index of the box in each dimension. Empty for a scalar."""
    lengths: tuple[int, ...]
    """Number of indices of the box in each dimension."""
    shared: bool
    """True if all ranks share the tensor. False if each rank has a tensor of its own by this name."""
    blob: int
    """Index of the blob in the manifest's list of blobs."""
    start: int
    """Position of the first byte in the blob."""
    stop: int
    """Position after the last byte in the blob."""
    xxh3_128: str = ""
    """Hash of the bytes of the slice, for readers that read no more of the blob. Empty until the slice is pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankManifest:
    """The list of everything that one rank stored for one step."""

    step_id: StepId
    rank: int
    world_size: int
    blobs: tuple[Blob, ...]
    tensors: tuple[TensorSlice, ...]
    state: Json
    """The Python state of this rank, as ``spot_plugins.state`` encodes it."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all blobs of this rank."""
        return sum(blob.num_bytes for blob in self.blobs)

    def slices_by_blob(self) -> list[list[TensorSlice]]:
        """Return the slices in each of the blobs, in the order of the blobs."""
        inside: defaultdict[int, list[TensorSlice]] = defaultdict(list)
        for piece in self.tensors:
            inside[piece.blob].append(piece)
        return [inside[index] for index in range(len(self.blobs))]

    def encode(self) -> bytes:
        """
        Return the manifest as canonical JSON with a hash of itself.

        Raises:
            ManifestError: It is larger than a reader accepts, or it has more values.
        """
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
        encoded = canonical_json(document)
        if len(encoded) > MAX_MANIFEST_BYTES or _num_values(encoded) > MAX_MANIFEST_VALUES:
            raise ManifestError(
                f"the manifest of {len(self.tensors)} slices and their state has {len(encoded)} bytes and about "
                f"{_num_values(encoded)} values, and a reader accepts {MAX_MANIFEST_BYTES} and {MAX_MANIFEST_VALUES}: "
                f"return tensors from state_dict() instead of long lists of numbers"
            )
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> RankManifest:
        """
        Read a manifest that :meth:`encode` wrote.

        Raises:
            NewerFormatError: Newer software wrote it.
            ManifestError: *data* is cut off, damaged, or no manifest at all.
        """
        _check_size(data)
        try:
            document = json.loads(data, parse_constant=_refuse)
            written = document.pop("xxh3_128", None)
            # The hash is checked first, because a flipped bit in "format" is damage and not newer software.
            if written is not None and not _is_hash_of(written, data, document):
                raise ManifestError("the content of the manifest does not match its hash")
            _check_format(document["format"])
            if written is None:
                raise ManifestError("the manifest has no hash of itself")
            step, attempt, rank, world_size = (document[name] for name in ("step", "attempt", "rank", "world_size"))
            if any(type(number) is not int for number in (step, attempt, rank, world_size)):
                raise ManifestError("the step, the attempt or the rank is no whole number")
            blobs = _checked(Blob, [Blob(**blob) for blob in document["blobs"]])
            for blob in blobs:
                if blob.num_bytes < 0 or not is_blob_key(blob.key, StepId(step, attempt), rank, blob.xxh3_128):
                    raise ManifestError(f"{blob.key!r} is no blob of this step and rank")
            return cls(
                step_id=StepId(step, attempt),
                rank=rank,
                world_size=world_size,
                blobs=blobs,
                tensors=_checked(TensorSlice, [_slice(tensor) for tensor in document["tensors"]]),
                state=document["state"],
            )
        except ManifestError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ManifestError(f"not a manifest: {error!r}") from error


def decode_merged(data: bytes) -> list[RankManifest]:
    """
    Read the manifests of all ranks from one object, which has one per line and no more bytes and values than one may.

    Raises:
        ManifestError: *data* is cut off or damaged. The manifests of the single ranks may be intact.
    """
    _check_size(data)
    return [RankManifest.decode(line) for line in data.splitlines()]


def hash_of_blob(header: bytes | memoryview, tensors: Iterable[TensorSlice]) -> str:
    """
    Return the hash of a blob from the hashes of its slices, so that no byte of a slice is read twice.

    It is the hash of *header* followed by the hashes of the slices, in the order of their first bytes.

    Args:
        header: The bytes in front of the first slice.
        tensors: All slices of the blob, with their hashes.
    """
    digest = xxhash.xxh3_128(header)
    for piece in sorted(tensors, key=lambda each: each.start):
        if piece.stop > piece.start:
            digest.update(bytes.fromhex(piece.xxh3_128))
    return digest.hexdigest()


def is_intact(data: memoryview, blob: Blob, inside: Sequence[TensorSlice]) -> bool:
    """Return True if *data* is *blob* with the slices *inside*, by its size and all hashes."""
    if len(data) != blob.num_bytes:
        return False
    if any(xxhash.xxh3_128_hexdigest(data[piece.start : piece.stop]) != piece.xxh3_128 for piece in inside):
        return False
    return hash_of_blob(data[: min((piece.start for piece in inside), default=None)], inside) == blob.xxh3_128


def canonical_json(document: Any) -> bytes:
    """Return *document* as JSON with sorted keys, no spaces and one newline at the end."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _check_size(data: bytes) -> None:
    if len(data) > MAX_MANIFEST_BYTES or _num_values(data) > MAX_MANIFEST_VALUES:
        raise ManifestError(f"{len(data)} bytes are no manifest, because it is too long or has too many values")


def _num_values(data: bytes) -> int:
    """Return how many values the JSON in *data* has at most, without reading it."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _check_format(version: int) -> None:
    if version > FORMAT:
        raise NewerFormatError(
            f"format {version} is newer than {FORMAT}, the newest this software reads; upgrade spot_plugins"
        )
    if version < FORMAT or version is True:
        raise ManifestError(f"format {version!r} does not exist")


def _is_hash_of(written: str, data: bytes, document: Any) -> bool:
    """
    Return True if *written* is the hash of *document*, which was read from *data* without its last entry, the hash.

    *data* is hashed as it is. *document* is encoded again only if *data* is in another form than the canonical one.
    """
    digest = xxhash.xxh3_128(memoryview(data)[: data.rfind(b',"xxh3_128":')])
    digest.update(b"}\n")
    return written == digest.hexdigest() or written == xxhash.xxh3_128_hexdigest(canonical_json(document))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_T = TypeVar("_T", Blob, TensorSlice)

_TYPES: Final[dict[Any, type]] = {"str": str, "bool": bool, "int": int, "tuple[int, ...]": int}
"""The type of a value, or of each item of it, by the declared type of the field."""


def _checked(kind: type[_T], values: list[_T]) -> tuple[_T, ...]:
    """Return *values*, which were read from JSON, after checking that their fields have the declared types."""
    for field in fields(kind):
        column: Iterable[Any] = map(attrgetter(field.name), values)
        if field.type == "tuple[int, ...]":
            column = chain.from_iterable(column)
        if not {*map(type, column)} <= {_TYPES[field.type]}:
            raise TypeError(f"{field.name} is not of the type {field.type}")
    return tuple(values)


def _slice(entry: dict[str, Any]) -> TensorSlice:
    for name in ("shape", "offsets", "lengths"):
        entry[name] = tuple(entry[name])
    return TensorSlice(**entry)
