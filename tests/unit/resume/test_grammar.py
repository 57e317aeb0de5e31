"""
Steps that a grammar makes, of one rank or two, with up to four faults and signed like honest ones.

A step is read exactly as its manifests say, or it is damage and the step before is read. An own reader, which is slow
and simple, says what they say. Honest steps are read. For each of these checks of the reader there are faults:

=============================  =========================================================================================
check                          faults that find it
=============================  =========================================================================================
slice within its blob          ``slide``, ``edge`` and ``size``: the start, the end or the size of the blob is shifted
bytes of a slice               ``edge``, ``type``, ``item`` and ``shift``: they are not those of its box and type
alignment                      ``slide``: no tensor can be a view of the bytes
index of the blob              ``index``: also from the end of the list
box within its tensor          ``item``, ``shift`` and ``flip``
one of own and shared          ``own``: on one rank alone
one dtype and shape            ``type``, ``shift`` and ``flip``: on one rank alone
all of a tensor, each once     ``gone``, ``twice`` and ``shift``
bytes belong to one slice      ``twice`` and ``slide``
key of a blob                  ``swap`` and ``name``: the blob of another rank, and a frozen blob of another hash
one size of a frozen blob      ``size``: of one of two ranks that have the same blob
sizes against the store        ``huge``: nothing is allocated for bytes that nobody has stored
numbers of the manifest        ``root``, ``next`` and ``kind``: of another step or rank, or no whole numbers
the merged copy                ``other``: it contradicts the manifest of a rank
hashes and lengths             ``bit``, ``cut``, ``long``, ``hash`` and ``blob``: after signing
=============================  =========================================================================================
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signed_steps import HEADER, STEP, Step, empty, freeze, little_memory, sign, stored
from steps import URL, ThreadRank

from spot_plugins.errors import CorruptCheckpointError
from spot_plugins.events import CheckpointRejected, EventBus
from spot_plugins.format.commit import CommittedStep
from spot_plugins.ranks import Job, MemoryBoard, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.resume.reader import StepReader

ITEM_BYTES = {"F32": 4, "I32": 4, "F64": 8, "I64": 8, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}
SAME_SIZE = {"F32": "I32", "F64": "I64", "I64": "F64", "BF16": "F16", "U8": "BOOL"}
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
KINDS += ["edge", "slide", "slide", "size", "own", "own", "type", "type", "flip", "index", "kind", "kind", "next"]
NUMBERS = ["step", "attempt", "rank", "world_size", "start", "stop", "blob", "shared", "num_bytes"]
WORDS = st.sampled_from(["", "part/t0", "part/t1", "F32", "F64", "U8", "F7", "z" * 32, "../up", "x" * 300, "\ud800"])


@st.composite
def steps(draw):
    """Draw a step, honest at first."""
    world_size = draw(st.sampled_from([1, 2, 2]))
    bytes_of = random.Random(draw(st.integers(0, 99)))
    step = Step([empty(rank, world_size) for rank in range(world_size)])
    contents = [bytearray(HEADER) for _ in range(world_size)]
    for number in range(draw(st.integers(1, 3))):
        name, dtype = f"part/t{number}", draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        is_shared = draw(st.booleans())
        whole = [0] * len(shape), shape
        boxes = [[whole] if rank == 0 or not is_shared else [] for rank in range(world_size)]
        if is_shared and world_size == 2 and shape and draw(st.integers(0, 3)):
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
    if world_size == 2 and draw(st.integers(0, 2)) == 0:  # rank 1 has stored the same as rank 0
        step.documents[1] |= copy.deepcopy({name: step.documents[0][name] for name in ("tensors", "state")})
        contents[1] = contents[0]
        step.blobs = {key: bytes(contents[0]) for key in step.blobs}
        step.documents[1]["blobs"][0]["num_bytes"] = len(contents[0])
        step.is_honest = all(each["lengths"] == each["shape"] for each in step.documents[0]["tensors"])
    step.merged = draw(st.sampled_from([None, None, "copy", "other"]))
    step.frozen = draw(st.sampled_from([[], [], [], [0], [world_size - 1], [*range(world_size)]]))
    if draw(st.integers(0, 3)) == 0:
        step.documents[0]["state"]["part"]["more"] = draw(states())
        step.is_honest = False
    for _ in range(draw(st.integers(0, 4))):
        draw(faults(step))
        step.is_honest = False
    for rank, document in enumerate(step.documents):
        sign(document, step.blobs)
        if rank in step.frozen:
            freeze(document, step.blobs)
    if not step.is_honest and draw(st.integers(0, 2)) == 0:
        draw(damages(step))
    return step


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
    if kind == "kind":
        holder = draw(st.sampled_from([each for each in (document, *pieces, *blobs) if isinstance(each, dict)]))
        name = draw(st.sampled_from([each for each in NUMBERS if each in holder] or ["rank"]))
        if type(holder[name]) in (int, bool):
            holder[name] = draw(st.sampled_from([float, int, bool]))(holder[name])
    elif kind == "next":
        document[draw(st.sampled_from(["step", "attempt", "rank", "world_size"]))] = draw(st.integers(0, 3))
    elif kind == "root":
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
    elif kind == "edge":
        edge = draw(st.sampled_from(["start", "stop"]))
        if type(piece[edge]) is int:
            piece[edge] += draw(st.sampled_from([-16, -8, -4, -2, -1, 1, 2, 4, 8, 16]))
    elif kind == "slide" and type(piece["start"]) is int and type(piece["stop"]) is int:
        shift = draw(st.sampled_from([-32, -16, -8, -4, -2, -1, 1, 2, 4, 8, 16]))
        piece["start"] += shift
        piece["stop"] += shift
    elif kind == "index":
        piece["blob"] = draw(st.sampled_from([-1, 1, -2]))
    elif kind == "size" and blobs and type(blobs[0]["num_bytes"]) is int:
        blobs[0]["num_bytes"] += draw(st.sampled_from([-16, -8, -4, -1, 1, 8]))
    elif kind == "own":
        for each in pieces if draw(st.booleans()) else [piece]:
            each["shared"] = not each["shared"]
    elif kind == "type":
        piece["dtype"] = SAME_SIZE.get(piece["dtype"], "F32")
    elif kind == "flip" and all(isinstance(piece[each], list) for each in ("shape", "offsets", "lengths")):
        for each in ("shape", "offsets", "lengths"):
            piece[each].reverse()
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


@st.composite
def damages(draw, step):
    """Draw a damage of what is signed, and put it there."""
    document = draw(st.sampled_from(step.documents))
    key = draw(st.sampled_from(sorted(step.blobs)))
    content = step.blobs[key]
    kind = draw(st.sampled_from(["bit", "cut", "long", "gone", "name", "hash", "blob"]))
    if kind == "bit" and content:
        place = draw(st.integers(0, len(content) - 1))
        step.blobs[key] = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    elif kind == "cut":
        step.blobs[key] = content[: -draw(st.sampled_from([1, 8, 16]))]
    elif kind == "long":
        step.blobs[key] = content + bytes(draw(st.sampled_from([1, 8])))
    elif kind == "gone":
        del step.blobs[key]
    elif kind == "name" and isinstance(document["blobs"], list):
        step.blobs["frozen/" + "0" * 32 + ".safetensors"] = content
        document["blobs"] = [{**each, "key": "frozen/" + "0" * 32 + ".safetensors"} for each in document["blobs"]]
    elif isinstance(hashed := document["tensors" if kind == "hash" else "blobs"], list) and hashed:
        hashed[0]["xxh3_128"] = draw(st.sampled_from(["", "z" * 32, "0" * 32, "../../up", "x" * 300, None]))


def _expected(step, name, rank):
    """Return the bytes of the tensor *name*, of shape ``(*shape, bytes of an item)``, as *rank* has to get it."""
    found = [(document, piece) for document, piece in _read_by(step, rank) if piece["name"] == name]
    shape, item_bytes = found[0][1]["shape"], ITEM_BYTES[found[0][1]["dtype"]]
    whole = np.zeros((*shape, item_bytes), np.uint8)
    times = np.zeros(shape, int)
    for document, piece in found:
        where = tuple(slice(first, first + n) for first, n in zip(piece["offsets"], piece["lengths"], strict=True))
        whole[where] = _bytes_of(step, document, piece).reshape((*piece["lengths"], item_bytes))
        times[where] += 1
    assert (times == 1).all(), "a reader made up elements, or took one of two"
    return whole


def _read_by(step, rank):
    """Return the slices that *rank* reads, each with its manifest. Of several copies of a box it reads the first."""
    found = {}
    for document in step.documents:
        for piece in document["tensors"]:
            if piece["shared"] or document["rank"] == rank:
                found.setdefault((piece["name"], *piece["offsets"], -1, *piece["lengths"]), (document, piece))
    return [*found.values()]


def _bytes_of(step, document, piece):
    content = step.blobs.get(document["blobs"][piece["blob"]]["key"], b"")
    return np.frombuffer(content[piece["start"] : piece["stop"]], np.uint8)


def _assert_manifests_agree(step):
    """Fail if manifests contradict their keys, their blobs or each other, or if two slices share bytes of a blob."""
    facts, places = defaultdict(list), defaultdict(set)
    for rank, document in enumerate(step.documents):
        numbers = [document[name] for name in ("step", "attempt", "rank", "world_size")]
        assert str(numbers) == str([STEP.step, STEP.attempt, rank, len(step.documents)])
        for blob in document["blobs"]:
            own = f"steps/0000000002-000001/r{rank:05}-b0000.safetensors"
            assert blob["key"] in (own, f"frozen/{blob['xxh3_128']}.safetensors"), "a foreign blob"
            facts["blob", blob["key"]].append(blob)
        for piece in document["tensors"]:
            name, start, stop = piece["name"], piece["start"], piece["stop"]
            assert piece["blob"] >= 0
            blob = document["blobs"][piece["blob"]]
            facts["shared", name].append(piece["shared"])
            facts["tensor", name, None if piece["shared"] else rank].append([piece["dtype"], piece["shape"]])
            assert 8 <= start <= stop <= blob["num_bytes"], "a slice beyond its blob"
            assert stop - start == prod(piece["lengths"]) * ITEM_BYTES[piece["dtype"]], "the size of a slice"
            assert start % ITEM_BYTES[piece["dtype"]] == 0, "a slice that no tensor can be a view of"
            assert all(0 <= n <= 2**63 - 1 for n in (*piece["shape"], *piece["offsets"], *piece["lengths"]))
            if start < stop:
                places[blob["key"]].add((start, stop, name, *piece["offsets"]))
    assert all(each == found[0] for found in facts.values() for each in found), "ranks contradict each other"
    for found in places.values():
        assert all(after[0] >= before[1] for before, after in pairwise(sorted(found))), "slices share bytes"


def _assert_intact(step, rank):
    """Fail if a byte that *rank* reads has another hash than the manifests say."""
    read = [(document, piece) for document, piece in _read_by(step, rank) if piece["start"] < piece["stop"]]
    for document, piece in read:
        assert xxhash.xxh3_128_hexdigest(_bytes_of(step, document, piece)) == piece["xxh3_128"]
        blob = document["blobs"][piece["blob"]]
        assert piece["stop"] < blob["num_bytes"] or len(step.blobs[blob["key"]]) == blob["num_bytes"]
    for document in step.documents:
        full = [each for each in document["tensors"] if each["start"] < each["stop"]]
        for number, blob in enumerate(document["blobs"]):
            inside = sorted((each for each in full if each["blob"] == number), key=lambda each: each["start"])
            if inside and all(any(each is piece for _, piece in read) for each in inside):
                hashed = step.blobs[blob["key"]][: inside[0]["start"]]
                hashed += b"".join(bytes.fromhex(each["xxh3_128"]) for each in inside)
                assert xxhash.xxh3_128_hexdigest(hashed) == blob["xxh3_128"]


def _assert_same(step, state, rank):
    _assert_intact(step, rank)
    for name, tensor in state["part"]["tensors"].items():
        if tensor.numel() == 0:  # numpy has no such array if another extent is huge
            assert [*tensor.shape] in [piece["shape"] for _, piece in _read_by(step, rank) if piece["name"] == name]
            continue
        expected = _expected(step, name, rank)
        assert tensor.shape == expected.shape[:-1]
        assert tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes()


def _check(step):
    store, rejected = stored(step), []
    bus = EventBus(lambda event: rejected.append(event) if isinstance(event, CheckpointRejected) else None)
    with little_memory():
        loaded = load_newest(store, None, URL, Job(SingleRank(), MemoryBoard()), bus)
    assert loaded.step_id.step == (1 if rejected else STEP.step)
    for each in rejected:
        assert not step.is_honest, each.reason
        assert "MemoryError" not in each.reason and "allocate" not in each.reason, "sizes are believed"  # noqa: PT018
    if not rejected:
        _assert_manifests_agree(step)
        _assert_same(step, loaded.state, 0)
    third = ThreadRank(rank=1, world_size=3, board=MemoryBoard())
    try:
        of_third = StepReader(store, None, CommittedStep(STEP, len(step.documents)), third, lambda *_: None).read()
    except CorruptCheckpointError:
        assert not step.is_honest
    else:
        _assert_same(step, of_third.state, len(step.documents) - 1)
    return rejected


# The same examples in every run, and few, because test_checks.py reaches each check. The soak looks for new ones.
checked = settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))


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
