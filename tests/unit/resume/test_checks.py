"""
Each check of the reader by a fault of its own: a signed step of two ranks, in which nothing else is wrong.

The reason is compared too, so that a check that is removed is seen even where another one still refuses the step.
"""

from __future__ import annotations

import copy

import pytest
import torch
from signed_steps import HEADER, STEP, Step, empty, freeze, little_memory, sign, stored
from steps import ThreadRank

from spot_plugins.errors import GONE, CorruptCheckpointError
from spot_plugins.format.boxes import Box, ShardBoxes
from spot_plugins.format.commit import CommittedStep
from spot_plugins.format.keys import StepId, blob_key
from spot_plugins.ranks import MemoryBoard
from spot_plugins.resume.reader import StepReader
from spot_plugins.state import Shard

WHOLE = torch.arange(8, dtype=torch.float32).view(4, 2)
PAD = bytes(8)  # after the last slice, so that a slice can be moved


def honest():
    """A step of two ranks. Each has two rows of ``w``, its own ``o``, and its own ``e``, which is empty."""
    step = Step([empty(rank, 2) for rank in range(2)])
    for rank, document in enumerate(step.documents):
        key = blob_key(STEP, rank, 0)
        own = torch.tensor([rank, 7])
        content = HEADER + WHOLE[2 * rank : 2 * rank + 2].numpy().tobytes() + own.numpy().tobytes() + PAD
        step.blobs[key] = content
        document["blobs"] = [{"key": key, "num_bytes": len(content), "xxh3_128": ""}]
        w = {"name": "part/w", "dtype": "F32", "shape": [4, 2], "offsets": [2 * rank, 0], "lengths": [2, 2]}
        o = {"name": "part/o", "dtype": "I64", "shape": [2], "offsets": [0], "lengths": [2]}
        e = {"name": "part/e", "dtype": "F64", "shape": [0], "offsets": [0], "lengths": [0]}
        document["tensors"] = [
            {**w, "shared": True, "blob": 0, "start": 16, "stop": 32, "xxh3_128": ""},
            {**o, "shared": False, "blob": 0, "start": 32, "stop": 48, "xxh3_128": ""},
            {**e, "shared": False, "blob": 0, "start": 32, "stop": 32, "xxh3_128": ""},
        ]
        document["state"] = {"part": {name: {"$tensor": f"part/{name}"} for name in ("w", "o", "e")}}
    return step


def place(step, name):
    """The piece of the manifests that *name* means: its kind (``w`` and ``o``, blob or root) and its rank."""
    document = step.documents[int(name[1])]
    return {"w": document["tensors"][0], "o": document["tensors"][1], "b": document["blobs"][0], "r": document}[name[0]]


def signed(step):
    for document in step.documents:
        sign(document, step.blobs)
    return step


def read(step, rank=0, world_size=1, want=lambda name, shape: None):
    ranks = ThreadRank(rank, world_size, MemoryBoard())
    with little_memory():
        return StepReader(stored(step), None, CommittedStep(STEP, 2), ranks, want).read().state["part"]


def rows(first, stop):
    """The wish of a rank for some rows of ``w``."""
    boxes = ShardBoxes((4, 2), (Box((first, 0), (stop - first, 2)),), (0,))
    return lambda name, shape: Shard(torch.empty(stop - first, 2), boxes)


@pytest.mark.parametrize("frozen", [[], [1], [0, 1]], ids=str)
@pytest.mark.parametrize(
    ("rank", "world_size", "merged"),
    [(*each, merged) for each in [(0, 1), (0, 2), (1, 2), (2, 3)] for merged in (None, "copy")]
    + [(0, 1, "other"), (0, 2, "other")],
)
def test_an_honest_step_is_read(rank, world_size, merged, frozen):
    """As a whole, also by a rank of two that has stored half of it, and if the merged manifest contradicts a rank's."""
    step = signed(honest())
    step.merged = merged
    for each in frozen:
        freeze(step.documents[each], step.blobs)

    state = read(step, rank, world_size)

    assert torch.equal(state["w"], WHOLE)
    assert state["o"].tolist() == [rank if rank < 2 else 0, 7]
    assert state["e"].shape == (0,)
    assert "is_other" not in state


@pytest.mark.parametrize(("first", "stop"), [(0, 2), (0, 1), (1, 3), (0, 4), (2, 4)])
def test_a_rank_gets_the_rows_that_it_wants(first, stop):
    """They are in its own manifest, in that of the other rank, or in both."""
    assert torch.equal(read(signed(honest()), 0, 2, rows(first, stop))["w"], WHOLE[first:stop])


@pytest.mark.parametrize(
    ("rank", "world_size", "is_named"), [(0, 1, True), (0, 1, False), (0, 2, True), (2, 3, True), (2, 3, False)]
)
def test_a_tensor_that_another_rank_has_stored_is_read(rank, world_size, is_named):
    """Rank 1 has all of ``w``. Other ranks than before get it even if the state of rank 0 does not name it."""
    step = honest()
    place(step, "w1").update(shape=[2, 2], offsets=[0, 0])
    step.documents[0]["tensors"].remove(place(step, "w0"))
    if not is_named:
        del step.documents[0]["state"]["part"]["w"]

    assert torch.equal(read(signed(step), rank, world_size)["w"], WHOLE[2:])


IMPOSSIBLE, FOREIGN, OTHER = "is impossible", "is no blob of this step", "of another step or rank"
SHARED, BYTES, TENSORS, PART = "both shared and", "share bytes of one blob", "are of different tensors", "not all of"
NOTHING = {"blobs": [], "tensors": []}
FAULTS = [
    ("no such dtype", {"w0": {"dtype": "F7"}}, IMPOSSIBLE),
    ("a blob from the end", {"o0": {"blob": -1}}, IMPOSSIBLE),
    ("a blob that is not listed", {"o0": {"blob": 1}}, IMPOSSIBLE),
    ("bytes of the header", {"o0": {"start": 0, "stop": 16}}, IMPOSSIBLE),
    ("bytes after the blob", {"b0": {"num_bytes": 47}}, IMPOSSIBLE),
    ("not aligned", {"o0": {"start": 36, "stop": 52}}, IMPOSSIBLE),
    ("offsets of fewer dimensions", {"o0": {"offsets": []}}, IMPOSSIBLE),
    ("lengths of fewer dimensions", {"w0": {"lengths": [4]}}, IMPOSSIBLE),
    ("65 dimensions", {"o0": {"shape": [2] + 64 * [1], "offsets": 65 * [0], "lengths": [2] + 64 * [1]}}, IMPOSSIBLE),
    ("before its tensor", {"w0": {"offsets": [-1, 0]}}, IMPOSSIBLE),
    ("after its tensor", {"w1": {"offsets": [3, 0]}}, IMPOSSIBLE),
    ("turned around", {"w0": {"offsets": [2, 2], "lengths": [-2, -2]}}, IMPOSSIBLE),
    ("2^63", {"o0": {"shape": [0, 2**63], "offsets": [0, 0], "lengths": [0, 2**63], "stop": 32}}, IMPOSSIBLE),
    ("fewer bytes", {"o0": {"dtype": "I32"}}, IMPOSSIBLE),
    ("shared on one rank alone", {"w1": {"shared": False}}, SHARED),
    ("own on one rank alone", {"o1": {"shared": True}}, SHARED),
    ("bytes that overlap", {"o0": {"start": 24, "stop": 40}}, BYTES),
    ("bytes of two names", {"o0": {"start": 16, "stop": 32}}, BYTES),
    ("another dtype on one rank", {"w1": {"dtype": "I32"}}, TENSORS),
    ("another shape on one rank", {"w1": {"shape": [5, 2]}}, TENSORS),
    ("rows that nobody has", {"w0": {"shape": [5, 2]}, "w1": {"shape": [5, 2]}}, PART),
    ("rows that two ranks have", {"w1": {"offsets": [1, 0]}}, PART),
    ("an element of its own that is missing", {"o0": {"shape": [3]}}, PART),
    ("the manifest of another step", {"r0": {"step": 3, **NOTHING}}, OTHER),
    ("the manifest of another attempt", {"r1": {"attempt": 2, **NOTHING}}, OTHER),
    ("the manifest of another rank", {"r1": {"rank": 0, **NOTHING}}, OTHER),
    ("the manifest of another number of ranks", {"r0": {"world_size": 3}}, OTHER),
    ("a blob of another step", {"b0": {"key": blob_key(StepId(3, 1), 0, 0)}}, FOREIGN),
    ("a blob of another attempt", {"b0": {"key": blob_key(StepId(2, 2), 0, 0)}}, FOREIGN),
    ("a blob of another rank", {"b0": {"key": blob_key(STEP, 1, 0)}}, FOREIGN),
    ("a frozen blob of another hash", {"b0": {"key": "frozen/" + "0" * 32 + ".safetensors"}}, FOREIGN),
    ("a key that is no blob", {"b0": {"key": "run.json"}}, FOREIGN),
    ("a blob of less than nothing", {"b0": {"num_bytes": -1}}, FOREIGN),
    ("a field too much", {"o0": {"more": 0}}, "is damaged: not a manifest: TypeError"),
]  # fmt: skip


def faulty(changes):
    """A step whose blobs are there, with the hashes of the bytes that its manifests name."""
    step = honest()
    for name, change in changes.items():
        place(step, name).update(copy.deepcopy(change))
    content = step.blobs[blob_key(STEP, 0, 0)]
    for key in [blob["key"] for document in step.documents for blob in document["blobs"]]:
        step.blobs.setdefault(key, content)
    return signed(step)


@pytest.mark.parametrize(("changes", "reason"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS])
def test_a_fault_is_found_by_its_check(changes, reason):
    """The manifests of both ranks are read."""
    with pytest.raises(CorruptCheckpointError, match=reason):
        read(faulty(changes))


@pytest.mark.parametrize("changes", [each[1] for each in FAULTS if each[2] in (IMPOSSIBLE, BYTES)], ids=str)
def test_a_rank_finds_a_fault_that_it_alone_has_stored(changes):
    """It reads the rows that are in its own manifest, and so no other one."""
    rank = int(max(changes)[1])

    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        read(faulty(changes), rank, 2, rows(2 * rank, 2 * rank + 2))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *((name, field) for name in ("r0",) for field in ("step", "attempt", "rank", "world_size")),
        *(("b0", field) for field in ("key", "num_bytes", "xxh3_128")),
        *(("o0", field) for field in honest().documents[0]["tensors"][1]),
    ],
)
def test_a_number_of_another_type_is_found(name, field):
    """It is equal to the right one, or has the same items."""
    step = signed(honest())
    holder = place(step, name)
    as_other = {int: float, bool: int, str: lambda text: [text], list: lambda items: [*map(float, items)]}
    holder[field] = as_other[type(holder[field])](holder[field])

    with pytest.raises(CorruptCheckpointError, match=r"is not of the type|is no whole number"):
        read(step)


def _twice(step):
    step.documents[0]["tensors"].append(copy.deepcopy(place(step, "o0")))


def _two_names_for_the_same(step):
    step.documents[0]["tensors"].append({**place(step, "w0"), "name": "part/v", "shape": [2, 2]})


def _one_blob_of_two_sizes(step):
    step.documents[0]["blobs"].append({**place(step, "b0"), "num_bytes": 48})
    place(step, "o0")["blob"] = 1


def _no_hash(step):
    place(step, "b0").update(key="frozen/../run.safetensors", xxh3_128="../run")


def _huge(step):
    place(step, "o0").update(dtype="F32", shape=[2**40], lengths=[2**40], stop=32 + 2**42)
    place(step, "b0")["num_bytes"] = 32 + 2**42


def _huge_and_gone(step):
    _huge(step)
    del step.blobs[blob_key(STEP, 0, 0)]


def _damaged(first, stop, content):
    def damage(step):
        key = blob_key(STEP, 0, 0)
        step.blobs[key] = step.blobs[key][:first] + content + step.blobs[key][stop:]

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_twice, "a rank has a slice of 'part/o' twice"),
        (_two_names_for_the_same, BYTES),
        (_one_blob_of_two_sizes, "has two sizes or hashes"),
        (_no_hash, FOREIGN),
        (lambda step: step.documents[0].update(tensors=7), "is damaged: not a manifest: TypeError"),
        (lambda step: step.documents[0].update(tensors=["a"]), "is damaged: not a manifest: TypeError"),
        (_huge, f"has not {32 + 2**42} bytes"),
        (_huge_and_gone, GONE),
        (_damaged(20, 21, b"x"), "its hash differs"),
        (_damaged(8, 9, b"x"), "its hash differs"),
        (_damaged(0, 0, b"x"), "its hash differs"),
        (_damaged(40, 56, b""), "instead of"),
        (lambda step: step.blobs.clear(), GONE),
    ],
    ids=[
        "twice",
        "two names",
        "two sizes",
        "no hash",
        "no list",
        "no slices",
        "huge",
        "huge and gone",
        "a slice",
        "the header",
        "moved",
        "cut",
        "gone",
    ],
)
def test_a_damage_is_found_by_its_check(damage, reason):
    """A fault that is more than another value, or damage after the signature."""
    step = signed(honest())
    damage(step)

    with pytest.raises(CorruptCheckpointError, match=reason):
        read(step)


def test_a_blob_that_is_longer_than_its_last_slice_says_is_found():
    """The blob ends with a slice, and bytes follow."""
    step = honest()
    place(step, "b0")["num_bytes"] = 48

    with pytest.raises(CorruptCheckpointError, match="has more bytes instead of 48"):
        read(signed(step))


def test_own_boxes_that_overlap_do_not_stand_for_all_elements():
    """
    A rank wants three rows. Its two slices have as many elements, and hold one row of them twice and one not at all.
    """
    step = honest()
    document = step.documents[0]
    place(step, "o0").update({**place(step, "w0"), "offsets": [1, 0], "lengths": [1, 2], "start": 32, "stop": 40})
    del document["state"]["part"]["o"]

    with pytest.raises(CorruptCheckpointError, match=PART):
        read(signed(step), 0, 2, rows(0, 3))
