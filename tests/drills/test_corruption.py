"""Whatever happens to stored bytes: it is seen before a tensor is used, and an older step or a clear error follows."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
import xxhash
from hearing import Heard
from steps import Holder, assert_same, load, load_on_all, save, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import IncompatibleCheckpointError, NothingToResumeError
from spot_plugins.events import CheckpointRejected
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, blob_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest, canonical_json, hash_of_blob
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, MemoryStore

NEWEST = StepId(2, 1)
MANIFEST = rank_manifest_key(NEWEST, 0, 1)
BLOB = blob_key(NEWEST, 0, 0)


def two_steps(store=None):
    store = MemoryStore() if store is None else store
    claim_attempt(store, b"")
    save(1, store)
    save(2, store)
    return store


def flip(store, key, index):
    data = bytearray(store.get(key))
    data[index] ^= 1 << index % 8
    store.put(key, bytes(data))


def cut(store, key, num_bytes):
    store.put(key, store.get(key)[:num_bytes])


def rewrite(store, key, **changes):
    """Change fields of a manifest as somebody would who knows the format: its own hash is right again."""
    document = json.loads(store.get(key)) | changes
    del document["xxh3_128"]
    store.put(key, canonical_json({**document, "xxh3_128": xxhash.xxh3_128_hexdigest(canonical_json(document))}))


DAMAGES = {
    "bit of a blob": (lambda store: flip(store, BLOB, -1), "its hash differs"),
    "bit of a blob's header": (lambda store: flip(store, BLOB, 3), "its hash differs"),
    "truncated blob": (lambda store: cut(store, BLOB, 100), "has 100 bytes instead of"),
    "empty blob": (lambda store: cut(store, BLOB, 0), "has 0 bytes instead of"),
    "longer blob": (lambda store: store.put(BLOB, store.get(BLOB) + b"\0"), "bytes instead of"),
    "missing blob": (lambda store: store.delete(BLOB), "is gone"),
    "blob of another step": (
        lambda store: store.put(BLOB, store.get(blob_key(StepId(1, 1), 0, 0))),
        "its hash differs",
    ),
    "bit of a manifest": (lambda store: flip(store, MANIFEST, 200), "is damaged"),
    "truncated manifest": (lambda store: cut(store, MANIFEST, 300), "not a manifest"),
    "empty manifest": (lambda store: cut(store, MANIFEST, 0), "not a manifest"),
    "manifest of another step": (
        lambda store: store.put(MANIFEST, store.get(rank_manifest_key(StepId(1, 1), 0, 1))),
        "is the manifest of another step or rank",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_rejected_with_its_reason_and_the_one_before_is_taken(damage, says):
    """
    One event names the step, the object and what is wrong with it; what is loaded is the older step, bit for bit.
    """
    store = two_steps()
    damage(store)
    told = []

    loaded = load(store, told=told)

    assert loaded.step_id == StepId(1, 1)
    assert_same(loaded.state["part"], state_of(1))
    (rejected,) = told
    assert isinstance(rejected, CheckpointRejected)
    assert (rejected.step, rejected.attempt) == NEWEST
    assert says in rejected.reason
    assert "steps/0000000002-000001/" in rejected.reason


def test_any_flipped_bit_of_a_blob_is_seen():
    """
    Not only some: whichever byte of the file changes.
    """
    store = two_steps()
    intact = store.get(BLOB)
    for index in range(len(intact)):
        flip(store, BLOB, index)
        assert load(store).step_id.step == 1, index
        store.put(BLOB, intact)

    assert load(store).step_id.step == 2


def test_a_step_without_a_manifest_is_not_committed():
    """
    A missing manifest is no damage: the step does not count, silently, as after a crash before it was written.
    """
    store = two_steps()
    store.delete(MANIFEST)
    told = []

    assert load(store, told=told).step_id.step == 1
    assert told == []


@pytest.mark.parametrize("damaged_rank", [0, 1])
def test_damage_that_one_rank_sees_is_believed_by_all(damaged_rank):
    """
    No rank goes on with the newer step while another has fallen back.
    """
    store = MemoryStore()
    for step in (1, 2):
        for rank in range(2):
            save(step, store, rank=rank, world_size=2)
    own_only = {"own": {"rng": torch.arange(3)}, "step": 2}
    for rank in range(2):
        save(3, store, rank=rank, world_size=2, state=own_only)
    flip(store, blob_key(StepId(3, 1), damaged_rank, 0), -1)

    assert [loaded.step_id.step for loaded in load_on_all(store, 2)] == [2, 2]


def test_when_all_are_damaged_a_person_decides():
    """
    Training anew over the loss would hide it: the error says how many there are, what is wrong, and what to do.
    """
    store = two_steps()
    for step in (1, 2):
        flip(store, blob_key(StepId(step, 1), 0, 0), -1)
    told = []

    with pytest.raises(NothingToResumeError, match=r"all 2 committed steps are damaged.*hash differs.*another URL"):
        load(store, told=told)

    assert [event.step for event in told] == [2, 1]


def test_a_newer_format_is_not_damage():
    """
    Falling back behind a step of newer software would lose it silently: the error names the upgrade instead.
    """
    store = two_steps()
    rewrite(store, MANIFEST, format=2)

    with pytest.raises(
        IncompatibleCheckpointError, match=r"step 2 cannot be loaded here: format 2.*upgrade spot_plugins"
    ):
        load(store)


def test_what_one_rank_cannot_read_ends_all_of_them():
    """
    Every rank raises the same error; none waits for one that has left.
    """
    store = MemoryStore()
    for rank in range(2):
        save(1, store, rank=rank, world_size=2)
    rewrite(store, rank_manifest_key(StepId(1, 1), 1, 2), format=2)

    results = load_on_all(store, 2)

    assert [type(result) for result in results] == [IncompatibleCheckpointError] * 2
    assert str(results[0]) == str(results[1])


@pytest.mark.parametrize(
    ("damage", "is_used"),
    [
        (lambda local: None, True),
        (lambda local: flip(local, BLOB, -1), False),
        (lambda local: cut(local, BLOB, 50), False),
        (lambda local: local.delete(BLOB), False),
        (lambda local: local.delete(MANIFEST), True),
    ],
    ids=["intact", "bit", "truncated", "missing", "no manifest"],
)
def test_a_damaged_local_copy_is_only_slower(damage, is_used, tmp_path):
    """
    The first copy is never trusted: where it is damaged the blob comes from the store, and the step is the newest.
    """
    store, local = two_steps(), LocalStore(str(tmp_path))
    save(2, MemoryStore(), local=local)
    damage(local)

    loaded = load(store, local=local)

    assert loaded.step_id == NEWEST
    assert_same(loaded.state["part"], state_of(2))
    assert loaded.from_local_bytes == (loaded.num_bytes if is_used else 0)


def test_a_local_copy_saves_a_damaged_object_of_the_store(tmp_path):
    """
    What the store lost, an intact copy on this machine makes good.
    """
    store, local = two_steps(), LocalStore(str(tmp_path))
    save(2, MemoryStore(), local=local)
    store.delete(BLOB)

    assert load(store, local=local).step_id == NEWEST


def test_nothing_live_is_touched_before_everything_is_verified(tmp_path):
    """
    The last of many blobs is damaged: no part was given anything, not even what was intact.
    """
    url = str(tmp_path)
    store = LocalStore(url)
    claim_attempt(store, b"")
    save(1, store)
    flip(store, blob_key(StepId(1, 1), 0, 0), -1)
    heard = Heard()
    session = SpotSession(SpotConfig(url=url, every_steps=1), on_event=[heard])
    holder = Holder(state_of(0))
    session.register("part", holder)

    with pytest.raises(NothingToResumeError):
        session.resume()
    session.close()

    assert holder.num_loads == 0
    assert_same(holder.state, state_of(0))
    assert len(heard.of(CheckpointRejected)) == 1


# What somebody could write who may write to the bucket, and who knows the format.


class Exploit:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def hostile(store, data=None, **changes):
    """Make step 2 hostile: *data* in its blob, *changes* in its manifest, and all hashes right."""
    manifest = RankManifest.decode(store.get(MANIFEST))
    blob = manifest.blobs[0]
    if data is not None:
        store.put(BLOB, data)
        tensors = tuple(
            replace(piece, xxh3_128=xxhash.xxh3_128_hexdigest(data[piece.start : piece.stop]))
            for piece in manifest.tensors
        )
        first = min(piece.start for piece in tensors)
        blob = replace(blob, num_bytes=len(data), xxh3_128=hash_of_blob(data[:first], tensors))
        changes = {"tensors": tensors} | changes
    store.put(MANIFEST, replace(manifest, **({"blobs": (blob,)} | changes)).encode())


def first_slice(store, **changes):
    manifest = RankManifest.decode(store.get(MANIFEST))
    return {"tensors": (replace(manifest.tensors[0], **changes), *manifest.tensors[1:])}


def with_state(tag):
    return {"state": {"part": tag}}


def test_a_pickle_in_the_place_of_a_blob_is_data(tmp_path):
    """
    Its bytes become numbers or are refused; they are never unpickled.
    """
    store = two_steps()
    trap = tmp_path / "executed"
    payload = pickle.dumps(Exploit(trap))
    intact = len(store.get(BLOB))
    for data in (payload, payload.ljust(intact, b"\0"), store.get(BLOB)[:128] + payload.ljust(intact - 128, b"\0")):
        hostile(store, data)
        load(store)
    store.put(MANIFEST, payload)
    assert load(store).step_id.step == 1

    assert not trap.exists()


@pytest.mark.parametrize(
    "tag",
    [
        {"$pickle": "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjA1lY2hvIGV4cGxvaXRlZJSFlFKULg=="},
        {"$object": ["os", "system", "exit"]},
        {"$path": ["os.system", "exit"]},
        {"$defaultdict": ["eval", {}]},
        {"$dtype": "__loader__"},
        {"$dtype": "load"},
        {"$numpy": ["O", {"$tensor": "part/own/rng"}]},
        {"$numpy_scalar": ["object", "00"]},
        {"$device": "nonsense"},
        {"$tensor": "part/not/there"},
        {"$tensor": ["part"]},
        {"$tensor": {"$tensor": "x"}},
        {"$order": [0, 0]},
        {"$tensor": "part/own/rng", "$size": [1]},
    ],
    ids=str,
)
def test_a_state_document_names_nothing_but_data(tag):
    """
    A tag that is unknown, or whose content is not of its kind, makes the step corrupt. Nothing is looked up by name.
    """
    store = two_steps()
    hostile(store, **with_state(tag))
    told = []

    assert load(store, told=told).step_id.step == 1
    assert "unreadable state" in told[0].reason


def deep(levels):
    tag = 0
    for _ in range(levels):
        tag = [tag]
    return tag


MALFORMED = {
    "no such blob": lambda store: first_slice(store, blob=7),
    "a blob before the first": lambda store: first_slice(store, blob=-1),
    "beyond the blob": lambda store: first_slice(store, stop=10**9),
    "before the blob": lambda store: first_slice(store, start=-8),
    "backwards": lambda store: first_slice(store, start=150, stop=140),
    "fewer bytes than numbers": lambda store: first_slice(store, lengths=(5,), shape=(5,), offsets=(0,)),
    "outside the tensor": lambda store: first_slice(store, offsets=(10**6,)),
    "before the tensor": lambda store: first_slice(store, offsets=(-1,)),
    "other dimensions": lambda store: first_slice(store, shape=(1, 3)),
    "a tensor beyond memory": lambda store: first_slice(store, shape=(2**62,), lengths=(2**62,), offsets=(0,)),
    "an unknown type": lambda store: first_slice(store, dtype="OBJECT"),
    "not aligned": lambda store: first_slice(store, start=129, stop=129 + 24),
    "a word for a number": lambda store: first_slice(store, start="0"),
    "the same rows twice": lambda store: {"tensors": 2 * RankManifest.decode(store.get(MANIFEST)).tensors},
    "rows that are missing": lambda store: {"tensors": RankManifest.decode(store.get(MANIFEST)).tensors[1:]},
    "too deep": lambda store: with_state(deep(900)),
    "no parts": lambda store: {"state": [1, 2]},
    "a key outside the run": lambda store: {
        "blobs": (replace(RankManifest.decode(store.get(MANIFEST)).blobs[0], key="../../etc/passwd"),)
    },
}


@pytest.mark.parametrize("changes", MALFORMED.values(), ids=MALFORMED)
def test_a_manifest_that_makes_no_sense_is_damage(changes):
    """
    Whatever an intact-looking manifest claims, the end is a fall-back to the step before, not a crash of one rank that
    leaves the others waiting.
    """
    store = two_steps()
    hostile(store, **changes(store))
    told = []

    assert load(store, told=told).step_id.step == 1
    assert len(told) == 1


def test_rows_that_overlap_leave_no_memory_unwritten():
    """
    Rows stored twice while others are missing have the right number of bytes. They are not taken for the whole tensor,
    whose rest would be whatever was in memory.
    """
    store = MemoryStore()
    claim_attempt(store, b"")
    save(1, store)
    weight = torch.arange(48.0).view(24, 2)
    for rank in range(2):
        save(2, store, rank=rank, world_size=2, state={"both": {"weight": weight}})
    key = rank_manifest_key(NEWEST, 1, 2)
    manifest = RankManifest.decode(store.get(key))
    (piece,) = manifest.tensors
    store.put(key, replace(manifest, tensors=(replace(piece, offsets=(0, 0)),)).encode())

    results = load_on_all(store, 2)

    assert [result.step_id.step for result in results] == [1, 1]
