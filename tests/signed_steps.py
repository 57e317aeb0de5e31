"""Steps of one rank or two that a test writes itself, with any fault in them and signed like honest ones."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from functools import cache

import torch
import xxhash
from steps import save

from spot_plugins.format.keys import StepId, merged_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import canonical_json
from spot_plugins.store import MemoryStore

STEP = StepId(2, 1)
HEADER = b"\x08".ljust(8, b"\0") + b"{}      "
ROOM_BYTES = 1024**3


@dataclass
class Step:
    """The manifests of a step, one for each rank, and its blobs."""

    documents: list
    blobs: dict = field(default_factory=dict)
    frozen: list = field(default_factory=list)
    """The ranks whose blob is a frozen one."""
    merged: str | None = None
    """``copy``, or ``other`` if it contradicts the manifest of rank 0. None if there is no merged manifest."""
    is_honest: bool = True


def empty(rank, world_size):
    document = {"format": 1, "step": STEP.step, "attempt": STEP.attempt, "rank": rank, "world_size": world_size}
    return {**document, "blobs": [], "tensors": [], "state": {"part": {"tensors": {}}}}


def freeze(document, blobs):
    """Store the blob of *document* under its hash, if it is an honest one."""
    try:
        (blob,) = document["blobs"]
        content = blobs[blob["key"]]
        blob["key"] = f"frozen/{blob['xxh3_128']}.safetensors"
        blobs[blob["key"]] = content
    except (TypeError, KeyError, ValueError):
        pass  # its fault has no such blob


def sign(document, blobs):
    """Give slices and blobs the hashes that their bytes have, as far as there are such bytes."""
    try:
        content = blobs[document["blobs"][0]["key"]]
        inside = sorted((each for each in document["tensors"] if each["blob"] == 0), key=lambda each: each["start"])
        for piece in inside:
            piece["xxh3_128"] = xxhash.xxh3_128_hexdigest(content[piece["start"] : piece["stop"]])
        full = [each for each in inside if each["stop"] > each["start"]]
        digest = xxhash.xxh3_128(content[: full[0]["start"]] if full else content)
        for piece in full:
            digest.update(bytes.fromhex(piece["xxh3_128"]))
        document["blobs"][0]["xxh3_128"] = digest.hexdigest()
    except (TypeError, KeyError, IndexError, AttributeError):
        pass  # its fault has no hash


@cache
def _honest():
    """The objects of an honest step 1."""
    store = MemoryStore()
    save(1, store, state={"both": {"w": torch.ones(2)}})
    return {key: store.get(key) for key in store.keys("")}


def stored(step):
    """Return a store with an honest step 1 and *step* as the newer one."""
    store = MemoryStore()
    lines = []
    for key, content in (_honest() | step.blobs).items():
        store.put(key, content)
    for rank, document in enumerate(step.documents):
        lines.append(encoded(document))
        store.put(rank_manifest_key(STEP, rank, len(step.documents)), lines[-1])
    if step.merged == "other":
        lines[0] = encoded({**step.documents[0], "state": {"part": {"tensors": {}, "is_other": True}}, "blobs": []})
    if step.merged is not None:
        store.put(merged_manifest_key(STEP), b"".join(lines))
    return store


def encoded(document):
    document = {name: value for name, value in document.items() if name != "xxh3_128"}
    document["xxh3_128"] = xxhash.xxh3_128_hexdigest(canonical_json(document))
    return canonical_json(document)


class little_memory:  # noqa: N801
    """Let nothing allocate more than :data:`ROOM_BYTES` in a ``with`` block."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + ROOM_BYTES, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self._before)
