"""A step that only the local disks have is committed before the job resumes, or left alone whole."""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch
from hearing import Heard
from sick_disks import SickDisk
from steps import URL, Holder, assert_same, assert_whole, numbers, save, state_of
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.errors import StoreError
from spot_plugins.events import EventBus, Resumed, Salvaged
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, attempt_key, blob_key, parse_rank_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.ranks import Job
from spot_plugins.resume import salvage
from spot_plugins.resume.newest import load_newest
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart
from spot_plugins.store import LimitedStore, LocalDisk, LocalStore, MemoryStore
from spot_plugins.testing import run_thread_ranks


@dataclass
class Machines:
    """A store in which step 1 is committed, and a disk per rank on which step 2 is whole as well."""

    store: MemoryStore
    disks: list[LocalStore]

    def save(self, step, *, world_size=None, attempt=1, stored=False):
        """Save on all ranks, as a job whose store takes nothing unless *stored*."""
        world_size = world_size or len(self.disks)
        for rank in range(world_size):
            store = self.store if stored else MemoryStore()
            save(step, store, rank=rank, world_size=world_size, local=self.disks[rank], attempt=attempt)

    def resume(self, *, world_size=None, attempt=None):
        """Start the next process life. Return the step that each rank loaded, and what each was told."""
        attempt = attempt or claim_attempt(self.store, uuid.uuid4().bytes)

        def body(ranks):
            told, board, local = [], ranks.open_board(), self.disks[ranks.rank]
            salvage.salvage(self.store, local, Job(ranks, board), attempt, EventBus(told.append))
            return load_newest(self.store, local, URL, Job(ranks, board), EventBus(told.append)), told

        steps, told = zip(*run_thread_ranks(world_size or len(self.disks), body), strict=True)
        assert_whole(self.store)
        return steps, told

    def delete(self, rank, step, attempt=1):
        """Empty the disk of *rank* of all that it has of a step."""
        for key in list(self.disks[rank].keys(StepId(step, attempt).prefix)):
            self.disks[rank].delete(key)


def job_of(world_size, folder):
    job = Machines(MemoryStore(), [LocalStore(str(folder / str(rank))) for rank in range(world_size)])
    job.resume()
    job.save(1, stored=True)
    job.save(2)
    return job


@pytest.fixture(params=[1, 2], ids="{} ranks".format)
def job(request, tmp_path):
    return job_of(request.param, tmp_path)


def assert_left_alone(job, steps, told, caplog, reason):
    """All ranks went on from step 1, nothing of step 2 was made visible, and somebody is told why."""
    assert [step.step_id for step in steps] == [(1, 1)] * len(steps)
    assert not any(isinstance(event, Salvaged) for events in told for event in events)
    assert not any(parse_rank_manifest_key(key) for key in job.store.keys(StepId(2, 1).prefix))
    assert reason in caplog.text


def test_a_step_on_all_disks_is_committed_and_loaded(job):
    """
    Each rank stores its part, and what it stored is what the pusher would have: the same objects, byte for byte. All of
    it is then read from the disks.
    """
    world_size = len(job.disks)
    steps, told = job.resume()

    assert numbers(job.store) == [2, 1]
    for rank, (step, events) in enumerate(zip(steps, told, strict=True)):
        assert step.step_id == (2, 1)
        assert_same(step.state["part"], state_of(2, rank))
        manifest = RankManifest.decode(job.store.get(rank_manifest_key(step.step_id, rank, world_size)))
        assert [(event.step, event.attempt, event.num_bytes) for event in events] == [(2, 1, manifest.num_bytes)]
        for key in job.disks[rank].keys(StepId(2, 1).prefix):
            assert job.store.get(key) == job.disks[rank].get(key)
        assert step.from_local_bytes > 0


def test_the_newest_of_several_is_taken(job):
    """
    One step is enough: older ones on the disks are not stored as well.
    """
    job.save(3)
    steps, _ = job.resume()

    assert {step.step_id.step for step in steps} == {3}
    assert numbers(job.store) == [3, 1]
    assert not list(job.store.keys(StepId(2, 1).prefix))


def test_nothing_is_stored_that_was_committed(job):
    """
    The usual resume: what the disks have is committed, and nobody writes anything.
    """
    job.save(2, stored=True)
    before = {key: job.store.get(key) for key in job.store.keys("steps/")}
    for disk in job.disks:
        disk.put(blob_key(StepId(2, 1), 0, 0), b"x")  # who would store it again would do damage
    steps, told = job.resume()

    assert {step.step_id.step for step in steps} == {2}
    assert told == ([],) * len(steps)
    assert {key: job.store.get(key) for key in job.store.keys("steps/")} == before


def test_a_part_that_no_disk_has(job, caplog):
    """
    One machine did not come back, or came back empty: the committed step is taken, on all ranks.
    """
    job.delete(len(job.disks) - 1, 2)
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "")


def test_a_part_that_is_stored_already_is_not_needed_on_a_disk(tmp_path):
    """
    Rank 0 had put its manifest before the store went down, and its machine is a new one. Its objects are not touched.
    """
    job = job_of(2, tmp_path)
    save(2, job.store, rank=0, world_size=2)
    job.delete(0, 2)
    before = {key: job.store.get(key) for key in job.store.keys(StepId(2, 1).prefix)}
    steps, told = job.resume()

    assert [step.step_id for step in steps] == [(2, 1)] * 2
    assert [event.num_bytes for event in told[0]] == [0]
    assert {key: job.store.get(key) for key in before} == before


def test_ranks_that_changed_places(tmp_path):
    """
    A launcher numbers machines anew when it starts them again: each rank stores what its disk has, whosever it was.
    """
    job = job_of(2, tmp_path)
    job.disks.reverse()
    steps, told = job.resume()

    for rank, step in enumerate(steps):
        assert step.step_id == (2, 1)
        assert_same(step.state["part"], state_of(2, rank))
    assert all(event.num_bytes > 0 for events in told for event in events)


def test_ranks_of_one_machine_store_their_own_parts(tmp_path):
    """
    They share a directory, so each could store everything. Each stores its own.
    """
    store, disk = MemoryStore(), LocalStore(str(tmp_path))
    job = Machines(store, [disk, disk])
    job.resume()
    job.save(2)
    _, told = job.resume()

    for rank, events in enumerate(told):
        manifest = RankManifest.decode(store.get(rank_manifest_key(StepId(2, 1), rank, 2)))
        assert [event.num_bytes for event in events] == [manifest.num_bytes]


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGES = {
    "blob flipped": (0, flip, "has changed since it was written, because its hash differs"),
    "header flipped": (0, lambda data: data[:12] + flip(data[:13])[12:] + data[13:], "its hash differs"),
    "blob cut": (0, lambda data: data[:-1], "does not have the"),
    "blob longer": (0, lambda data: data + b"x", "does not have the"),
    "blob gone": (0, None, "is missing"),
    "manifest flipped": (1, lambda data: data.replace(b'"rank":', b'"Rank":'), "hash"),
    "manifest cut": (1, lambda data: data[:100], "manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_never_made_visible(damage, job, caplog):
    """
    On the last rank alone, whatever is wrong with it: no rank puts a manifest, and all take the committed step.
    """
    which, change, reason = DAMAGES[damage]
    rank = len(job.disks) - 1
    key = [blob_key(StepId(2, 1), rank, 0), rank_manifest_key(StepId(2, 1), rank, len(job.disks))][which]
    data = job.disks[rank].get(key)
    job.disks[rank].delete(key)
    if change is not None:
        job.disks[rank].put(key, change(data))
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, reason)


def test_an_older_step_is_stored_if_the_newest_is_damaged(job):
    """
    Two steps are on the disks alone; of the newer one a blob is damaged. The older is still newer than any committed.
    """
    job.save(3)
    key = blob_key(StepId(3, 1), 0, 0)
    job.disks[0].put(key, flip(job.disks[0].get(key)))
    steps, _ = job.resume()

    assert {step.step_id.step for step in steps} == {2}
    assert numbers(job.store) == [2, 1]


@pytest.mark.parametrize(
    "name", ["steps/0000000001-000001/r00000-b0000.safetensors", "run.json", "frozen/x.safetensors"]
)
def test_a_manifest_that_names_what_is_not_its_own_overwrites_nothing(name, tmp_path, caplog):
    """
    A local directory that somebody made up: no object outside the step is put, not even with the right hash.
    """
    job = job_of(1, tmp_path)
    key = rank_manifest_key(StepId(2, 1), 0, 1)
    manifest = RankManifest.decode(job.disks[0].get(key))
    job.disks[0].put(name, job.disks[0].get(manifest.blobs[0].key))
    blobs = (replace(manifest.blobs[0], key=name), *manifest.blobs[1:])
    job.disks[0].put(key, replace(manifest, blobs=blobs).encode())
    before = {each: job.store.get(each) for each in job.store.keys("")}
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "no blob of this step")
    assert before.items() <= {each: job.store.get(each) for each in job.store.keys("")}.items()


@pytest.mark.parametrize("name", ["the manifest", "the claim", "a blob"])
def test_a_local_file_without_end_takes_no_memory(name, job, tmp_path, caplog):
    """
    A file of a terabyte lies in the place of a small one, most of it a hole. It is not read.
    """
    rank, world_size = len(job.disks) - 1, len(job.disks)
    key = {
        "the manifest": rank_manifest_key(StepId(2, 1), rank, world_size),
        "the claim": attempt_key(1),
        "a blob": blob_key(StepId(2, 1), rank, 0),
    }[name]
    os.truncate(tmp_path / str(rank) / key, 2**40)
    steps, told = job.resume()

    expected = {"the manifest": "has more than", "the claim": "", "a blob": "does not have the"}[name]
    assert_left_alone(job, steps, told, caplog, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_bytes": 2**70}, "OverflowError"),
        ({"num_bytes": -1}, "is no blob of this step"),
        ({"num_bytes": 2**40}, "does not have the"),
    ],
    ids=str,
)
def test_a_local_manifest_with_absurd_numbers_costs_one_step(change, reason, job, caplog):
    """
    It is signed. The resume continues from the step in the store.
    """
    rank, world_size = len(job.disks) - 1, len(job.disks)
    key = rank_manifest_key(StepId(2, 1), rank, world_size)
    manifest = RankManifest.decode(job.disks[rank].get(key))
    job.disks[rank].put(key, replace(manifest, blobs=(replace(manifest.blobs[0], **change),)).encode())
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, reason)


def test_a_manifest_under_another_name_is_not_believed(job, caplog):
    """
    It is whole, and so are its blobs, but it is that of step 1.
    """
    rank, world_size = len(job.disks) - 1, len(job.disks)
    data = job.disks[rank].get(rank_manifest_key(StepId(1, 1), rank, world_size))
    job.disks[rank].put(rank_manifest_key(StepId(2, 1), rank, world_size), data)
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "is the manifest of another step or rank")


def test_steps_of_another_number_of_ranks_are_not_looked_at(tmp_path, caplog):
    """
    A job of two ranks left step 2 on its disks. One rank alone cannot know whether that is all of it.
    """
    job = job_of(2, tmp_path)
    steps, told = job.resume(world_size=1)

    assert [step.step_id for step in steps] == [(1, 1)]
    assert told == ([],)
    assert not list(job.store.keys(StepId(2, 1).prefix))
    assert not caplog.records


def test_parts_of_another_number_of_ranks_in_the_store_do_not_count(tmp_path):
    """
    What the store has of this step is rank 0's of three: no part of what the disk of the only rank has.
    """
    job = job_of(1, tmp_path)
    job.store.put(rank_manifest_key(StepId(2, 1), 0, 3), b"{}")
    steps, _ = job.resume()

    assert [step.step_id for step in steps] == [(2, 1)]


def test_an_attempt_that_was_superseded_stores_nothing(job, caplog):
    """
    A newer attempt has been claimed meanwhile: this one puts neither a blob nor a manifest.
    """
    attempt = claim_attempt(job.store, b"")
    claim_attempt(job.store, b"")
    steps, told = job.resume(attempt=attempt)

    assert_left_alone(job, steps, told, caplog, "another process")
    assert not list(job.store.keys(StepId(2, 1).prefix))


class OvertakenStore(MemoryStore):
    """A newer attempt is claimed behind the first blob of step 2."""

    def put(self, key, data):
        super().put(key, data)
        if key.startswith(StepId(2, 1).prefix):
            claim_attempt(self, b"")


def test_an_attempt_that_is_superseded_meanwhile_makes_nothing_visible(tmp_path, caplog):
    """
    The newer attempt comes while blobs are put: no manifest follows.
    """
    job = job_of(2, tmp_path)
    overtaken = OvertakenStore()
    for key in job.store.keys(""):
        overtaken.put(key, job.store.get(key))
    job.store = overtaken
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "another process")
    assert list(job.store.keys(StepId(2, 1).prefix)), "some blob was put"


def test_what_an_overtaken_attempt_left_behind_stays_where_it_is(job):
    """
    Attempt 2 ran on other machines, did not get as far as attempt 1, and committed. It is its training that goes on.
    """
    job.save(5)
    for rank in range(len(job.disks)):
        save(3, job.store, rank=rank, world_size=len(job.disks), attempt=claim_second(job.store))
    steps, told = job.resume()

    assert {step.step_id for step in steps} == {(3, 2)}
    assert told == ([],) * len(steps)


def claim_second(store):
    return 2 if "attempts/000002.json" in store.keys("attempts/") else claim_attempt(store, b"")


class FullStore(MemoryStore):
    """Refuses what is of step 2 and ends with *suffix*, for good."""

    def __init__(self, suffix):
        super().__init__()
        self._suffix = suffix

    def put(self, key, data):
        if key.startswith(StepId(2, 1).prefix) and key.endswith(self._suffix):
            raise StoreError("put", key, "no room", retryable=False)
        super().put(key, data)


@pytest.mark.parametrize("suffix", ["safetensors", "r00001-b0000.safetensors", "json", "rank-00001-of-00002.json"])
def test_a_store_that_refuses_costs_the_step_and_not_the_job(suffix, tmp_path, caplog):
    """
    On one rank or all, for blobs or manifests: a warning, and all take the committed step.
    """
    job = job_of(2, tmp_path)
    full = FullStore(suffix)
    for key in job.store.keys(""):
        full.put(key, job.store.get(key))
    job.store = full
    steps, told = job.resume()

    assert [step.step_id for step in steps] == [(1, 1)] * 2
    assert told == ([], [])
    assert "step 2 is on local disks only and cannot be stored: " in caplog.text
    assert numbers(full) == [1]


class ForgetfulStore(MemoryStore):
    """Refuses to list steps, the first time."""

    asked = False

    def keys(self, prefix):
        if prefix == "steps/" and not self.asked:
            self.asked = True
            raise StoreError("list", prefix, "not now", retryable=False)
        return super().keys(prefix)


def test_a_store_that_cannot_be_listed_costs_the_step_and_not_the_job(tmp_path, caplog):
    """
    Nobody knows what is newer then, so nothing is stored. If it goes on like that, it is for the resume to say so.
    """
    job = job_of(2, tmp_path)
    attempt = claim_attempt(job.store, uuid.uuid4().bytes)
    forgetful = ForgetfulStore()
    for key in job.store.keys(""):
        forgetful.put(key, job.store.get(key))
    job.store = forgetful
    steps, told = job.resume(attempt=attempt)

    reason = "steps that are on local disks only cannot be looked for: cannot list 'steps/': not now"
    assert_left_alone(job, steps, told, caplog, reason)


class BrokenDisk(LocalStore):
    """Cannot be listed."""

    def keys(self, prefix):
        raise StoreError("list", prefix, "I/O error", retryable=False)


@pytest.mark.parametrize("disk", [BrokenDisk("/nowhere"), None], ids=["broken", "none"])
def test_a_rank_without_a_disk(disk, tmp_path, caplog):
    """
    Its part is nowhere, so all take the committed step.
    """
    job = job_of(2, tmp_path)
    job.disks[1] = disk
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "I/O error" if disk else "")


def test_the_copies_of_another_run_are_left_alone(job):
    """
    Somebody emptied the store to start anew at the same URL. The disks still have steps, of attempts of the same
    numbers as the new run's, and higher than what that committed.
    """
    job.resume()
    job.save(9, attempt=2)
    for key in list(job.store.keys("")):
        job.store.delete(key)
    steps, told = job.resume()
    assert steps == (None,) * len(steps)
    job.save(1, stored=True)
    steps, told_again = job.resume()
    job.resume()

    assert {step.step_id for step in steps} == {(1, 1)}
    assert told == told_again == ([],) * len(steps)
    assert numbers(job.store) == [1]
    assert not list(job.store.keys(StepId(2, 1).prefix))


class StuckDisk(LocalStore):
    """Removes nothing."""

    def delete(self, key):
        raise StoreError("delete", key, "I/O error", retryable=False)


def test_copies_of_another_run_that_cannot_be_removed_are_not_taken_for_our_own(tmp_path, caplog):
    """
    The new run's first life does not put its claim beside them, so the next one leaves them alone as well.
    """
    job = job_of(1, tmp_path)
    for key in list(job.store.keys("")):
        job.store.delete(key)
    disks, job.disks = job.disks, [StuckDisk(str(tmp_path / "0"))]
    job.resume()
    assert "the local copies cannot be used: " in caplog.text
    job.disks = disks
    steps, told = job.resume()

    assert (steps, told) == ((None,), ([],))


def test_copies_of_an_attempt_that_nobody_knows_are_left_alone(job):
    """
    Neither the disk nor the store has its claim: that they agree in that says nothing.
    """
    for store in (job.store, *job.disks):
        store.delete("attempts/000001.json")
    job.store.put("attempts/000005.json", b"the only one")
    steps, told = job.resume(attempt=5)

    assert {step.step_id for step in steps} == {(1, 1)}
    assert told == ([],) * len(steps)


def test_the_disk_keeps_no_claims_that_are_of_no_use(job):
    """
    Many lives, and of each that has something on the disk one small file.
    """
    for attempt in range(2, 6):
        job.resume()
        assert list(job.disks[0].keys("attempts/")) == ["attempts/000001.json", f"attempts/{attempt:06d}.json"]


class MuteStore(MemoryStore):
    """Tells nobody what attempts claimed."""

    def get(self, key):
        if key.startswith("attempts/"):
            raise StoreError("get", key, "not now", retryable=False)
        return super().get(key)


def test_a_store_that_does_not_tell_the_claims_costs_the_step_and_not_the_job(tmp_path, caplog):
    """
    Without them nobody knows of which run the copies are, so they are left alone.
    """
    job = job_of(2, tmp_path)
    mute = MuteStore()
    for key in job.store.keys(""):
        mute.put(key, job.store.get(key))
    job.store = mute
    steps, told = job.resume()

    assert_left_alone(job, steps, told, caplog, "not now")


class FullDisk(LocalStore):
    """Takes nothing more."""

    def put(self, key, data):
        raise StoreError("put", key, "the disk is full", retryable=True)


def test_a_full_disk_still_gives_what_it_has(tmp_path, caplog):
    """
    This attempt's own copies will not be found again, which a warning says.
    """
    job = job_of(2, tmp_path)
    job.disks = [FullDisk(str(tmp_path / str(rank))) for rank in range(2)]
    steps, _ = job.resume()

    assert [step.step_id for step in steps] == [(2, 1)] * 2
    assert "the next attempt cannot use the local copies of this one: " in caplog.text


def test_what_an_earlier_try_left_in_the_store_is_replaced(job):
    """
    A pusher died when it had put a blob; the step was saved again, with other bytes, and those are on the disks.
    """
    for rank in range(len(job.disks)):
        job.store.put(blob_key(StepId(2, 1), rank, 0), b"of an earlier try")
    job.resume()
    steps, _ = job.resume()

    for rank, step in enumerate(steps):
        assert step.step_id == (2, 1)
        assert job.store.get(blob_key(StepId(2, 1), rank, 0)) == job.disks[rank].get(blob_key(StepId(2, 1), rank, 0))


def test_the_local_copies_wait_for_the_resume(job):
    """
    Many steps that the store never took: the newest stays on the disks until the next life, which stores it.
    """
    for step in range(3, 9):
        job.save(step)
    steps, _ = job.resume()

    assert {step.step_id.step for step in steps} == {8}


def tuned():
    """A frozen base, and a head that is trained."""
    model = nn.ModuleDict({"base": nn.Linear(300, 300), "head": nn.Linear(16, 4)})
    model["base"].requires_grad_(False)
    return model, torch.optim.AdamW(model["head"].parameters())


def life(folder, body, url="store"):
    """A session with frozen weights, whose run is a directory; *body* gets it, its model and what it told."""
    heard = Heard()
    model, optimizer = tuned()
    config = SpotConfig(url=str(folder / url), local_dir=str(folder / "local"), every_steps=10**6)
    with closing(SpotSession(config, on_event=[heard])) as session:
        session.register("model", ModelPart(model), replicated=ModelPart.replicated)
        session.register("optimizer", OptimizerPart(optimizer, model), replicated=OptimizerPart.replicated)
        return body(session, model, heard)


@pytest.mark.parametrize("frozen_in", ["disk", "store", "both", "neither"])
def test_frozen_weights_may_be_on_the_disk_or_in_the_store(frozen_in, tmp_path):
    """
    They lie outside the step: what the store has is not put again, what it lacks comes from the disk, and without
    either the step is not committed.
    """

    def save_twice(session, model, heard):
        session.resume()
        session.finish(1)
        return {name: value.clone() for name, value in model.state_dict().items()}

    weights = life(tmp_path, save_twice)
    store, disk = LocalStore(str(tmp_path / "store")), LocalStore(str(tmp_path / "local"))
    (frozen,) = store.keys("frozen/")
    for key in [*store.keys("steps/"), *([frozen] if frozen_in in ("disk", "neither") else [])]:
        store.delete(key)
    if frozen_in in ("store", "neither"):
        disk.delete(frozen)

    def resume(session, model, heard):
        resumed = session.resume()
        return resumed, {name: value.clone() for name, value in model.state_dict().items()}, heard

    resumed, found, heard = life(tmp_path, resume)
    if frozen_in == "neither":
        assert resumed is None
        assert not heard.of(Salvaged)
        return
    assert resumed == 1
    assert_same(dict(found), dict(weights))
    (salvaged,) = heard.of(Salvaged)
    assert heard.of(Resumed)[0].from_attempt == salvaged.attempt == 1
    assert (salvaged.num_bytes > 4 * 300 * 300) == (frozen_in == "disk")
    assert frozen in store.keys("frozen/")


def test_a_session_resumes_from_what_its_disk_has(tmp_path):
    """
    With the real pusher: the store lost step 1 before anybody saw it. It is there again, and the next save goes on.
    """
    config = SpotConfig(url=str(tmp_path / "store"), local_dir=str(tmp_path / "local"), every_steps=10**6)
    with closing(SpotSession(config)) as session:
        session.register("part", Holder(state_of(1)), replicated=("both",))
        session.resume()
        session.finish(1)
    store = LocalStore(str(tmp_path / "store"))
    for key in store.keys("steps/"):
        store.delete(key)
    holder = Holder(state_of(9))
    with closing(SpotSession(config)) as session:
        session.register("part", holder, replicated=("both",))
        assert session.resume() == 1
        session.finish(2)

    assert_same(holder.state, state_of(1))
    assert numbers(store) == [2, 1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resume_continues_with_the_store_wherever_the_disk_hangs(world_size, tmp_path, caplog):
    """
    The disk of the last rank hangs at its first, second, third ... act. All ranks load the newest step that the store
    has then, bit for bit, and what the disk gives later changes nothing. One warning names the disk.
    """
    loaded = []
    for first in count():
        caplog.clear()
        folder = tmp_path / str(first)
        job = job_of(world_size, folder)
        job.disks = [LimitedStore(disk, LocalDisk(str(folder / str(rank)))) for rank, disk in enumerate(job.disks)]
        with SickDisk(folder / str(world_size - 1), first=first) as sick:
            steps, _ = job.resume()
        loaded.append(numbers(job.store)[0])
        assert [step.step_id.step for step in steps] == loaded[-1:] * world_size
        for rank, step in enumerate(steps):
            assert_same(step.state["part"], state_of(loaded[-1], rank))
        if not sick.hangs.is_set():
            break
        said = [record for record in caplog.records if "the local disk has not answered" in record.getMessage()]
        assert sum(f" at {folder / str(world_size - 1)}, " in record.getMessage() for record in said) == 1
    assert (loaded[0], loaded[-1]) == (1, 2)
