"""
Steps that a grammar makes, of one rank or two, with up to four faults and signed like honest ones.

A step is read exactly as its manifests say, or it is damage and the step before is read. An own reader, which is slow
and simple, says what they say.
"""

from __future__ import annotations

import copy
import json
import random
import resource
from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import URL, save

from spot_plugins.events import CheckpointRejected, EventBus
from spot_plugins.format.keys import StepId, rank_manifest_key
from spot_plugins.format.manifest import canonical_json
from spot_plugins.ranks import Job, MemoryBoard, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.store import MemoryStore

ITEM_BYTES = {"F32": 4, "F64": 8, "I64": 8, "BF16": 2, "U8": 1}
STEP = StepId(2, 1)
HEADER = b"\x08".ljust(8, b"\0") + b"{}      "
ROOM_BYTES = 1024**3
ABSURD = st.sampled_from(
    [
        -(2**63),
        -1,
        0,
        1,
        2,
        3,
        7,
        8,
        16,
        64,
        2**31,
        2**40,
        2**61,
        2**62,
        2**63 - 1,
        2**63,
        2**64,
        2**200,
        None,
        "4",
        1.0,
    ]
)
KINDS = ["item", "shift", "twice", "gone", "number", "item", "shift", "word", "many", "huge", "blob", "swap", "root"]
WORDS = st.sampled_from(["", "part/t0", "part/t1", "F32", "F64", "U8", "F7", "z" * 32, "../up", "x" * 300, "\ud800"])


@dataclass
class Step:
    """The manifests of a step, one for each rank, and its blobs."""

    documents: list
    blobs: dict = field(default_factory=dict)


@st.composite
def steps(draw):
    """Draw a step, honest at first."""
    world_size = draw(st.integers(1, 2))
    bytes_of = random.Random(draw(st.integers(0, 99)))
    step = Step([_empty(rank, world_size) for rank in range(world_size)])
    contents = [bytearray(HEADER) for _ in range(world_size)]
    for number in range(draw(st.integers(1, 3))):
        name, dtype = f"part/t{number}", draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        is_shared = draw(st.booleans())
        whole = [0] * len(shape), shape
        boxes = [[whole] if rank == 0 or not is_shared else [] for rank in range(world_size)]
        if is_shared and world_size == 2 and shape and draw(st.booleans()):
            rows = draw(st.integers(0, shape[0]))
            boxes = [[(whole[0], [rows, *shape[1:]])], [([rows, *whole[0][1:]], [shape[0] - rows, *shape[1:]])]]
        for rank, held in enumerate(boxes):
            for offsets, lengths in held:
                contents[rank] += bytes(-len(contents[rank]) % 8)
                start = len(contents[rank])
                contents[rank] += bytes_of.randbytes(prod(lengths) * ITEM_BYTES[dtype])
                piece = {"name": name, "dtype": dtype, "shape": [*shape], "offsets": [*offsets], "lengths": [*lengths]}
                piece |= {"shared": is_shared, "blob": 0, "start": start, "stop": len(contents[rank]), "xxh3_128": ""}
                step.documents[rank]["tensors"].append(piece)
            if held or is_shared:
                step.documents[rank]["state"]["part"]["tensors"][name] = {"$tensor": name}
    for rank, content in enumerate(contents):
        key = f"steps/0000000002-000001/r{rank:05}-b0000.safetensors"
        step.blobs[key] = bytes(content)
        step.documents[rank]["blobs"].append({"key": key, "num_bytes": len(content), "xxh3_128": ""})
    if draw(st.integers(0, 3)) == 0:
        step.documents[0]["state"]["part"]["more"] = draw(states())
    for _ in range(draw(st.integers(0, 4))):
        draw(faults(step))
    for document in step.documents:
        _sign(document, step.blobs)
    return step


def _empty(rank, world_size):
    document = {"format": 1, "step": STEP.step, "attempt": STEP.attempt, "rank": rank, "world_size": world_size}
    return {**document, "blobs": [], "tensors": [], "state": {"part": {"tensors": {}}}}


def states():
    """Draw what a state document may hold, and what it may not."""
    tensors = st.sampled_from(["part/t0", "part/t1", "nowhere", 7]).map(lambda name: {"$tensor": name})
    keys = st.sampled_from(["a", "b", "$order", "$", "$nonsense"])
    tags = [
        "$tuple",
        "$set",
        "$frozenset",
        "$dict",
        "$ordered_dict",
        "$counter",
        "$defaultdict",
        "$deque",
        "$dict_kind",
    ]
    tags += [
        "$numpy",
        "$complex",
        "$complex128",
        "$composed",
        "$order",
        "$float",
        "$bytes",
        "$path",
        "$dtype",
        "$device",
    ]

    def nested(inner):
        lists = st.lists(inner, max_size=3)
        tagged = st.builds(lambda tag, content: {tag: content}, st.sampled_from(tags), st.one_of(lists, inner))
        array = tensors.map(lambda each: {"$numpy": ["<f4", each]})
        return st.one_of(lists, tagged, array, st.dictionaries(keys, inner, max_size=3))

    return st.recursive(st.one_of(ABSURD, WORDS, tensors), nested, max_leaves=8)


@st.composite
def faults(draw, step):
    """Draw one fault of *step*, and put it there."""
    document = draw(st.sampled_from(step.documents))
    pieces, blobs = document["tensors"], document["blobs"]
    kind = draw(st.sampled_from(KINDS))
    if not isinstance(pieces, list) or not isinstance(blobs, list):
        return  # by an earlier fault
    if kind == "root":
        document[draw(st.sampled_from(["step", "rank", "world_size", "tensors", "blobs", "state"]))] = draw(ABSURD)
    elif kind == "blob" and blobs:
        blobs[0][draw(st.sampled_from(["num_bytes", "key"]))] = draw(st.one_of(ABSURD, WORDS))
    elif kind == "swap":
        blobs[:] = [{**each, "key": draw(st.sampled_from(sorted(step.blobs)))} for each in blobs]
    elif isinstance(pieces, list) and pieces and isinstance(pieces[0], dict):
        piece = draw(st.sampled_from(pieces))
        _spoil(draw, kind, piece, pieces, blobs)


def _spoil(draw, kind, piece, pieces, blobs):
    name = draw(st.sampled_from(["shape", "offsets", "lengths"]))
    box = piece.get(name)
    if kind == "number":
        piece[draw(st.sampled_from(["start", "stop", "blob", "shared"]))] = draw(ABSURD)
    elif kind == "item" and isinstance(box, list) and box:
        box[draw(st.integers(0, len(box) - 1))] = draw(ABSURD)
    elif kind == "word":
        piece[draw(st.sampled_from(["name", "dtype", "shape", "lengths"]))] = draw(WORDS)
    elif kind == "shift" and isinstance(box, list) and box and type(box[0]) is int:
        box[0] += draw(st.sampled_from([-1, 1]))
    elif kind == "twice":
        pieces.append({**copy.deepcopy(piece), "name": draw(st.one_of(st.just(piece["name"]), WORDS))})
    elif kind == "huge" and isinstance(piece["start"], int) and blobs:
        length = draw(st.sampled_from([2**29, 2**40, 2**59]))
        piece.update(dtype="F32", shape=[length], lengths=[length], offsets=[0], stop=piece["start"] + 4 * length)
        blobs[0]["num_bytes"] = piece["stop"]
    elif kind == "many":
        pieces += [{**piece, "shape": [3000], "offsets": [number], "lengths": [1]} for number in range(3000)]
    elif kind == "gone":
        pieces.remove(piece)


def _sign(document, blobs):
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


def _stored(step):
    """Return a store with an honest step 1 and *step* as the newer one."""
    store = MemoryStore()
    save(1, store, state={"both": {"w": torch.ones(2)}})
    for key, content in step.blobs.items():
        store.put(key, content)
    for rank, document in enumerate(step.documents):
        try:
            document["xxh3_128"] = xxhash.xxh3_128_hexdigest(canonical_json(document))
            data = canonical_json(document)
        except UnicodeEncodeError:
            data = json.dumps(document).encode()
        store.put(rank_manifest_key(STEP, rank, len(step.documents)), data)
    return store


def _expected(step, name):
    """Return the bytes of the tensor *name*, of shape ``(*shape, bytes of an item)``, by the manifests."""
    manifests = step.documents if _pieces(step.documents, name)[0]["shared"] else step.documents[:1]
    pieces = _pieces(manifests, name)
    item_bytes = ITEM_BYTES[pieces[0]["dtype"]]
    found = np.zeros((*pieces[0]["shape"], item_bytes), np.uint8)
    times = np.zeros(pieces[0]["shape"], int)
    for box in {(*each["offsets"], -1, *each["lengths"]): each for each in pieces}.values():
        (content,) = [
            step.blobs.get(doc["blobs"][0]["key"], b"") for doc in manifests if any(box is e for e in doc["tensors"])
        ]
        where = tuple(slice(first, first + n) for first, n in zip(box["offsets"], box["lengths"], strict=True))
        data = np.frombuffer(content[box["start"] : box["stop"]], np.uint8)
        found[where] = data.reshape((*box["lengths"], item_bytes))
        times[where] += 1
    assert (times == 1).all(), "a reader made up elements, or took one of two"
    return found


def _pieces(documents, name):
    return [each for document in documents for each in document["tensors"] if each["name"] == name]


def _check(step):
    store, rejected = _stored(step), []
    bus = EventBus(lambda event: rejected.append(event) if isinstance(event, CheckpointRejected) else None)
    with _little_memory():
        loaded = load_newest(store, None, URL, Job(SingleRank(), MemoryBoard()), bus)
    assert loaded.step_id.step == (1 if rejected else STEP.step)
    for each in rejected:
        assert "MemoryError" not in each.reason and "allocate" not in each.reason, "sizes are believed"  # noqa: PT018
    for name, tensor in {} if rejected else loaded.state["part"]["tensors"].items():
        expected = _expected(step, name)
        assert tensor.shape == expected.shape[:-1]
        assert tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes()
    return rejected


class _little_memory:  # noqa: N801
    """Let nothing allocate more than :data:`ROOM_BYTES` in a ``with`` block."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + ROOM_BYTES, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self._before)


# The same examples in every run. The soak looks for new ones.
checked = settings(deadline=None, max_examples=400, derandomize=True, suppress_health_check=list(HealthCheck))


@given(step=steps())
@checked
def test_a_step_is_read_as_it_says_or_costs_one_step(step):
    _check(step)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(step=steps())
@settings(checked, max_examples=20_000, derandomize=False)
def test_many_steps_are_read_as_they_say_or_cost_one_step(step):
    _check(step)
