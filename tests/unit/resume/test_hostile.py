"""A store that may hold anything, signed well: a step that cannot be read is damage, and the step before is tried."""

from __future__ import annotations

import copy
import json
import resource

import pytest
import torch
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steps import URL, save

from spot_plugins.events import CheckpointRejected, EventBus
from spot_plugins.format.commit import committed_steps
from spot_plugins.format.keys import rank_manifest_key
from spot_plugins.format.manifest import canonical_json
from spot_plugins.ranks import Job, MemoryBoard, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.store import MemoryStore

ABSURD = [2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 2**200, -1, -(2**63), 0, 1, 3]
VALUES = st.one_of(
    st.sampled_from(ABSURD),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "zz", "\ud800", "x" * 300, "../../etc/passwd", "steps/\0", "F32", "F64", "$tensor", "a/b"]),
    st.lists(st.sampled_from(ABSURD), max_size=5),
    st.just([2**40] * 65),
    st.just({"$tensor": "part/both/w"}),
    st.just({"$order": [0, 0], "a": 1, "b": 2}),
    st.just({"$complex128": "part/both/w"}),
    st.just({"$numpy": ["<f4", {"$tensor": "nowhere"}]}),
)


def _state():
    generator = torch.Generator().manual_seed(1)
    return {"both": {"w": torch.randn(6, 4, generator=generator)}, "own": [1, 2.5, "three", {"four": (5,)}]}


@pytest.fixture(scope="module")
def stored():
    """A store with two intact steps, and the manifest of the newer one."""
    store = MemoryStore()
    for step in (1, 2):
        save(step, store, state=_state())
    newest = committed_steps(store)[0]
    key = rank_manifest_key(newest.step_id, 0, 1)
    return store, key, json.loads(store.get(key))


def _signed(document):
    document = {name: value for name, value in document.items() if name != "xxh3_128"}
    document["xxh3_128"] = xxhash.xxh3_128_hexdigest(_bytes_of(document))
    return _bytes_of(document)


def _bytes_of(document):
    try:
        return canonical_json(document)
    except UnicodeEncodeError:
        return json.dumps(document).encode()


def _resume(stored, data):
    """Return the step that is read when *data* is the newest manifest, and the reasons of rejected ones."""
    store, key, _ = stored
    rejected = []
    intact = store.get(key)
    store.put(key, data)
    try:
        bus = EventBus(lambda event: rejected.append(event) if isinstance(event, CheckpointRejected) else None)
        return load_newest(store, None, URL, Job(SingleRank(), MemoryBoard()), bus), rejected
    finally:
        store.put(key, intact)


def _assert_fine(stored, data):
    loaded, rejected = _resume(stored, data)
    assert loaded.step_id.step == (1 if rejected else 2)
    if rejected:
        assert torch.equal(loaded.state["part"]["both"]["w"], _state()["both"]["w"])


def _places(document, path=()):
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, item in items:
        yield from _places(item, (*path, key))


def _changed(document, path, value):
    changed = copy.deepcopy(document)
    *holders, last = path
    inner = changed
    for key in holders:
        inner = inner[key]
    if value is _TWICE:
        if isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
    elif value is _GONE:
        del inner[last]
    else:
        inner[last] = value
    return changed


_TWICE, _GONE = object(), object()


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_signed_manifest_with_nonsense_in_one_place_costs_one_step(stored, data):
    """Each value of the newest manifest is replaced, repeated or removed, and the hash is right all the same."""
    document = stored[2]
    places = [path for path in _places(document) if path and path != ("xxh3_128",) and path != ("format",)]
    path = data.draw(st.sampled_from(places))
    value = data.draw(st.one_of(VALUES, st.sampled_from([_TWICE, _GONE])))

    _assert_fine(stored, _signed(_changed(document, path, value)))


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=100)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xff\xfe" * 100)
@example(b"1" * 100_000)
def test_bytes_that_are_no_manifest_cost_one_step(stored, data):
    """Cut off, binary, or nested without end."""
    _assert_fine(stored, data)


def _tensor(document):
    return next(each for each in document["tensors"] if each["lengths"] == [6, 4])


def _huge(document):
    _tensor(document).update(shape=[2**40, 4], lengths=[2**40, 4], stop=_tensor(document)["start"] + 2**44)
    document["blobs"][0]["num_bytes"] = 2**45


def _many_names_for_the_same_bytes(document):
    piece = _tensor(document)
    document["blobs"][0]["num_bytes"] = piece["stop"] = piece["start"] + 2**30
    piece.update(shape=[2**28], lengths=[2**28], offsets=[0])
    document["tensors"] = [{**piece, "name": f"part/both/w{number}"} for number in range(1000)]


def _thousands_of_boxes(document):
    piece = _tensor(document)
    document["tensors"] += [
        {**piece, "offsets": [number % 6, 0], "lengths": [1, 4], "shape": [6, 4]} for number in range(20_000)
    ]


def _no_hex(document):
    for each in document["tensors"]:
        each["xxh3_128"] = "z" * 32


@pytest.mark.parametrize("damage", [_huge, _many_names_for_the_same_bytes, _thousands_of_boxes, _no_hex])
def test_known_nonsense_costs_one_step_and_little_memory(damage, stored):
    """Sizes are compared with what is stored before memory is taken for them."""
    document = copy.deepcopy(stored[2])
    damage(document)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    loaded, rejected = _resume(stored, _signed(document))

    assert loaded.step_id.step == 1
    assert len(rejected) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


@pytest.mark.parametrize("state", [["part"], "part", None, 1.5])
def test_a_state_without_parts_is_named(state, stored):
    """It is no state of a training, although it can be decoded."""
    loaded, [rejected] = _resume(stored, _signed(_changed(stored[2], ("state",), state)))

    assert loaded.step_id.step == 1
    assert f"holds a {type(state).__name__} as its state, and not a dict of parts" in rejected.reason


def test_a_manifest_without_end_is_cut_off():
    """A reader takes no more of an object than a manifest can have."""
    store = MemoryStore()
    for step in (1, 2):
        save(step, store, state=_state())
    key = rank_manifest_key(committed_steps(store)[0].step_id, 0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spot_plugins.format.commit.MAX_MANIFEST_BYTES", len(store.get(key)))
        store.put(key, store.get(key)[:-1] + b" " * 10_000_000 + b"\n")
        loaded = load_newest(store, None, URL, Job(SingleRank(), MemoryBoard()), EventBus())

    assert loaded.step_id.step == 1
