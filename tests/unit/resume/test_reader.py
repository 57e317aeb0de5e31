"""The bytes that ranks read of a step that others saved, cut in other ways: their own part and little else."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import URL, numbers, save

from spot_plugins.errors import CorruptCheckpointError
from spot_plugins.events import EventBus
from spot_plugins.format.boxes import Box, ShardBoxes, range_boxes
from spot_plugins.format.commit import committed_steps, merge_manifests
from spot_plugins.format.keys import StepId, blob_key, merged_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import ManifestError, decode_merged
from spot_plugins.ranks import Job, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.resume.prefetch import Prefetch
from spot_plugins.resume.reader import StepReader
from spot_plugins.save import layout
from spot_plugins.state import Shard
from spot_plugins.store import LocalDisk, LocalStore, MemoryStore

SHAPE = (24, 10)
WHOLE = torch.arange(prod(SHAPE), dtype=torch.float32).view(SHAPE)


@pytest.fixture(autouse=True, scope="module")
def small_slices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SLICE_BYTES", 2 * 10 * 4)  # two rows
        yield


def in_rows(world, rank):
    edges = [number * SHAPE[0] // world for number in range(world + 1)]
    return (Box((edges[rank], 0), (edges[rank + 1] - edges[rank], SHAPE[1])),)


def in_columns(world, rank):
    edges = [number * SHAPE[1] // world for number in range(world + 1)]
    return (Box((0, edges[rank]), (SHAPE[0], edges[rank + 1] - edges[rank])),)


def in_runs(world, rank):
    edges = [number * prod(SHAPE) // world for number in range(world + 1)]
    return range_boxes(SHAPE, edges[rank], edges[rank + 1])


CUTS = {"rows": in_rows, "columns": in_columns, "runs": in_runs}


def shard(cut, world, rank):
    """The part of WHOLE that *rank* has."""
    boxes = cut(world, rank)
    parts = [WHOLE[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))] for box in boxes]
    local = parts[0].clone() if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
    return Shard(local, ShardBoxes(SHAPE, boxes, (rank,)))


def save_all(store, cut, world, step=1):
    for rank in range(world):
        save(step, store, rank=rank, world_size=world, state={"both": {"w": shard(cut, world, rank)}})


def read_all(store, cut, world, local=None):
    """The bytes that each of *world* ranks reads of the newest step."""
    (newest, *_) = committed_steps(store)
    loaded = []
    for rank in range(world):
        template = shard(cut, world, rank)
        ranks = SingleRank()
        ranks.rank, ranks.world_size = rank, world
        reader = StepReader(store, local, newest, ranks, lambda name, shape, wanted=template: wanted)
        loaded.append(reader.read())
    return loaded


@pytest.mark.parametrize("loading", CUTS)
@pytest.mark.parametrize("saving", CUTS)
@given(worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)))
@settings(deadline=None, max_examples=15)
def test_every_rank_gets_its_own_part_however_it_was_cut(saving, loading, worlds):
    """
    Saved by 1 to 5 ranks in rows, columns or runs of elements, loaded by 1 to 5 in any of these ways: the same bits.
    """
    store = MemoryStore()
    save_all(store, CUTS[saving], worlds[0])

    for rank, loaded in enumerate(read_all(store, CUTS[loading], worlds[1])):
        assert torch.equal(loaded.state["part"]["both"]["w"], shard(CUTS[loading], worlds[1], rank).local)


@pytest.mark.parametrize("worlds", [(1, 4), (4, 4), (2, 3), (4, 1), (3, 4)], ids=str)
def test_a_rank_reads_no_more_than_the_slices_it_needs(worlds):
    """
    Cut in rows, all ranks together read little more than the tensor: at most two rows twice at every edge.
    """
    store = MemoryStore()
    save_all(store, in_rows, worlds[0])

    num_bytes = sum(loaded.num_bytes for loaded in read_all(store, in_rows, worlds[1]))

    edges = worlds[0] + worlds[1] - 2
    headers = num_bytes_of(store) - WHOLE.nbytes
    assert WHOLE.nbytes <= num_bytes <= WHOLE.nbytes + headers + edges * 2 * SHAPE[1] * 4


def num_bytes_of(store):
    return sum(len(store.get(key)) for key in store.keys("steps/") if key.endswith(".safetensors"))


@pytest.mark.parametrize("at", ["first", "last", "truncated"])
def test_damage_is_found_by_who_reads_it(at):
    """
    One of two ranks needs only half of what a single one had saved. A flipped bit in its half, or a blob that ends too
    early, is damage; a flipped bit in the other half is the other's.
    """
    store = MemoryStore()
    save_all(store, in_rows, 1)
    (key,) = (key for key in store.keys("steps/") if key.endswith(".safetensors"))
    data = bytearray(store.get(key))
    if at == "truncated":
        del data[-1:]
    else:
        data[-WHOLE.nbytes if at == "first" else -1] ^= 1
    store.put(key, bytes(data))
    (newest,) = committed_steps(store)

    for rank in range(2):
        ranks = SingleRank()
        ranks.rank, ranks.world_size = rank, 2
        template = shard(in_rows, 2, rank)
        reader = StepReader(store, None, newest, ranks, lambda name, shape, wanted=template: wanted)
        if rank == (0 if at == "first" else 1):
            with pytest.raises(CorruptCheckpointError, match=r"differs|instead of"):
                reader.read()
        else:
            assert torch.equal(reader.read().state["part"]["both"]["w"], template.local)


def test_the_local_disk_serves_parts_of_blobs_too(tmp_path):
    """
    Half of a blob comes from an intact copy on the local disk; from the store if the copy is damaged.
    """
    store, local = MemoryStore(), LocalStore(str(tmp_path))
    save_all(store, in_rows, 1)
    (key,) = (key for key in store.keys("steps/") if key.endswith(".safetensors"))
    local.put(key, store.get(key))

    for loaded in read_all(store, in_rows, 2, local):
        assert loaded.from_local_bytes == loaded.num_bytes > 0
    local.put(key, bytes(len(store.get(key))))
    for rank, loaded in enumerate(read_all(store, in_rows, 2, local)):
        assert loaded.from_local_bytes == 0
        assert torch.equal(loaded.state["part"]["both"]["w"], shard(in_rows, 2, rank).local)


def test_replicas_that_do_not_know_of_each_other_are_no_damage():
    """
    Two ranks that store the same rows, each for itself, are two replicas; any of them will do.
    """
    store = MemoryStore()
    for rank in range(4):
        part = shard(in_rows, 2, rank % 2)
        own = Shard(part.local, ShardBoxes(SHAPE, part.boxes.held, (rank,)))
        save(1, store, rank=rank, world_size=4, state={"both": {"w": own}})

    assert numbers(store) == [1]
    for loaded in read_all(store, in_rows, 1):
        assert torch.equal(loaded.state["part"]["both"]["w"], WHOLE)


def test_without_a_wish_a_shared_tensor_comes_whole():
    """
    Who does not say which part it wants, as a tool for people does, gets all of it.
    """
    store = MemoryStore()
    save_all(store, in_columns, 3)
    ranks = SingleRank()

    loaded = load_newest(store, None, URL, Job(ranks, ranks.open_board()), EventBus())

    assert torch.equal(loaded.state["part"]["both"]["w"], WHOLE)


class CountingStore(MemoryStore):
    """Remembers which manifests were read."""

    def __init__(self):
        super().__init__()
        self.manifests = []

    def get(self, key):
        if key.endswith(".json"):
            self.manifests.append(key.rpartition("/")[2])
        return super().get(key)


def test_a_rank_that_has_its_shards_reads_no_other_manifest():
    """
    As long as nothing changes a resume of many ranks costs each of them one manifest; with another cut, one for all.
    """
    store = CountingStore()
    save_all(store, in_rows, 4)
    (newest,) = committed_steps(store)
    assert merge_manifests(store, newest.step_id, 4)

    for cut, world, expected in (
        (in_rows, 4, [f"rank-{rank:05d}-of-00004.json" for rank in range(4)]),
        (in_columns, 4, [name for rank in range(4) for name in (f"rank-{rank:05d}-of-00004.json", "merged.json")]),
        (in_rows, 2, [name for rank in range(2) for name in (f"rank-{rank:05d}-of-00004.json", "merged.json")]),
    ):
        store.manifests.clear()
        for rank, loaded in enumerate(read_all(store, cut, world)):
            assert torch.equal(loaded.state["part"]["both"]["w"], shard(cut, world, rank).local)
        assert store.manifests == expected


@pytest.mark.parametrize(
    "harm", ["missing", "cut", "flipped", "of another step", "short", "another blob", "no tensors", "another slice"]
)
def test_the_merged_manifest_decides_nothing(harm):
    """
    Without it, or with a damaged one, or with that of another step, the manifests of the single ranks are read. So they
    are if it has another manifest for a rank than the one that reads, with hashes that are right.
    """
    store = MemoryStore()
    save_all(store, in_rows, 3, step=1)
    merge_manifests(store, committed_steps(store)[0].step_id, 3)
    save_all(store, in_rows, 3, step=2)
    newest, before = (step.step_id for step in committed_steps(store))
    assert merge_manifests(store, newest, 3)
    data = store.get(merged_manifest_key(newest))
    lines = data.splitlines(keepends=True)
    harmed = {
        "cut": data[:-20],
        "flipped": data[:30] + bytes([data[30] ^ 1]) + data[31:],
        "of another step": store.get(merged_manifest_key(before)),
        "short": b"".join(lines[:-1]),
        **{name: b"".join([*lines[:-1], other.encode()]) for name, other in _others(decode_merged(data)[-1])},
    }
    for key in [merged_manifest_key(newest), *store.keys(before.prefix)]:
        store.delete(key)
    if harm in harmed:
        store.put(merged_manifest_key(newest), harmed[harm])

    for loaded in read_all(store, in_columns, 2):
        assert loaded.step_id == newest


def _others(manifest):
    """Yield manifests that contradict *manifest*, each with its name."""
    yield "another blob", replace(manifest, blobs=tuple(replace(each, xxh3_128="0" * 32) for each in manifest.blobs))
    yield "no tensors", replace(manifest, tensors=())
    yield (
        "another slice",
        replace(manifest, tensors=tuple(replace(each, xxh3_128="0" * 32) for each in manifest.tensors)),
    )


def test_a_step_that_is_not_whole_is_not_merged():
    """
    As long as a manifest is missing there is nothing to merge, and nothing is written.
    """
    store = MemoryStore()
    save(1, store, rank=0, world_size=2)

    assert not merge_manifests(store, StepId(1, 1), 2)
    assert not [key for key in store.keys("") if key.endswith("merged.json")]


def test_a_manifest_without_end_is_not_merged(tmp_path):
    """
    It is a file of a terabyte, most of it a hole. Readers read the single manifests, and refuse this one.
    """
    store = LocalStore(str(tmp_path))
    save_all(store, in_rows, 2)
    os.truncate(tmp_path / rank_manifest_key(StepId(1, 1), 1, 2), 2**40)

    with pytest.raises(ManifestError, match="too many bytes for a copy"):
        merge_manifests(store, StepId(1, 1), 2)


def test_manifests_that_are_too_large_together_are_not_merged(monkeypatch):
    """
    A reader accepts no larger copy than one manifest may be, and reads the single ones. The pusher of rank 0 reads
    none of them then, because all together they may be larger than its memory.
    """
    store = CountingStore()
    save_all(store, in_rows, 20)
    sizes = [len(store.get(rank_manifest_key(StepId(1, 1), rank, 20))) for rank in range(20)]
    monkeypatch.setattr("spot_plugins.format.commit.MAX_MANIFEST_BYTES", sum(sizes) - 1)

    store.manifests.clear()
    with pytest.raises(ManifestError, match="too many bytes for a copy"):
        merge_manifests(store, StepId(1, 1), 20)
    assert not store.manifests
    assert merged_manifest_key(StepId(1, 1)) not in store.keys("")
    monkeypatch.setattr("spot_plugins.format.commit.MAX_MANIFEST_BYTES", sum(sizes))
    assert merge_manifests(store, StepId(1, 1), 20)
    monkeypatch.setattr("spot_plugins.format.manifest.MAX_MANIFEST_BYTES", sum(sizes) - 1)
    with pytest.raises(ManifestError, match="too long or has too many values"):
        decode_merged(store.get(merged_manifest_key(StepId(1, 1))))


def test_a_manifest_of_another_rank_is_not_merged():
    """
    It was copied over that of rank 1.
    """
    store = MemoryStore()
    save_all(store, in_rows, 2)
    store.put(rank_manifest_key(StepId(1, 1), 1, 2), store.get(rank_manifest_key(StepId(1, 1), 0, 2)))

    with pytest.raises(ManifestError, match="is the manifest of another step or rank"):
        merge_manifests(store, StepId(1, 1), 2)


def test_a_blob_that_is_larger_than_its_manifest_says_is_not_prefetched(tmp_path):
    """
    It is a file of a terabyte, most of it a hole. The others are downloaded.
    """
    store, local = LocalStore(str(tmp_path / "store")), tmp_path / "local"
    save_all(store, in_rows, 2)
    os.truncate(tmp_path / "store" / blob_key(StepId(1, 1), 1, 0), 2**40)

    Prefetch(store, str(local), LocalDisk(str(local), lambda seconds: None)).run()

    assert [*LocalStore(str(local)).keys("steps/")] == [blob_key(StepId(1, 1), 0, 0)]
