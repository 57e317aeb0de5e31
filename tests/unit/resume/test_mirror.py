"""
A run in SageMaker's ``/opt/ml/checkpoints``: mirrored to S3 file by file, new and deleted ones in any order and at any
speed, and brought back as far as that had come.
"""

from __future__ import annotations

import random
import shutil
import threading
from functools import cache
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import Holder, assert_same, save, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import NothingToResumeError
from spot_plugins.events import CheckpointRejected, EventBus
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import committed_steps
from spot_plugins.format.manifest import canonical_json
from spot_plugins.ranks import Job, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

NUM_RANKS = 2
NUM_SAVES = 5


class Recorder(LocalStore):
    """Writes down all files after each change."""

    def __init__(self, root, states):
        super().__init__(root)
        self.states = states
        self.recording = threading.Lock()

    def put(self, key, data):
        super().put(key, data)
        self.record()

    def put_if_absent(self, key, data):
        was_absent = super().put_if_absent(key, data)
        self.record()
        return was_absent

    def delete(self, key):
        with self.recording:  # several are removed at once
            super().delete(key)
            self.record()

    def record(self):
        self.states.append({key: self.get(key) for key in self.keys("")})


@cache
def history(keep_last):
    """Return what the folder held at the begin, and behind each thing that was written or removed."""
    states = [{}]
    with TemporaryDirectory() as folder:
        store = Recorder(folder, states)
        claim_attempt(store, canonical_json({}))
        for number in range(1, NUM_SAVES + 1):
            for rank in range(NUM_RANKS):
                save(10 * number, store, rank=rank, world_size=NUM_RANKS, keep_last=keep_last)
    return states


def mirrored(states, seed, lag, folder):
    """
    Bring a mirror back to *folder*: of each file it has what was there at some time of its own, at most *lag* changes
    before the mirror stopped.
    """
    rng = random.Random(seed)
    stop = rng.randrange(len(states))
    for name in sorted({name for files in states for name in files}):
        at = rng.randint(max(0, stop - lag), stop)
        if (data := states[at].get(name)) is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return states[stop]


def resume(folder, *, is_mirror=True):
    ranks, told = SingleRank(), []
    store = LocalStore(str(folder))
    loaded = load_newest(
        store, None, str(folder), Job(ranks, ranks.open_board()), EventBus(told.append), is_mirror=is_mirror
    )
    return loaded, told


def newest_of(files, folder):
    """The newest step that is committed among *files*."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return max((committed.step_id.step for committed in committed_steps(LocalStore(str(folder)))), default=0)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mirror")


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), lag=st.integers(0, 60), keep_last=st.sampled_from([1, 2, 3]))
def test_what_a_mirror_brings_back_is_resumed_whole_or_not_at_all(seed, lag, keep_last, scratch):
    """
    Whatever is missing, and whatever is there though it was removed: no error, and a step with the very state that was
    saved in it; never one that nobody had committed. The next life takes a number that no step has.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    mirrored(history(keep_last), seed, lag, scratch / "run")
    loaded, _ = resume(scratch / "run")

    if loaded is not None:
        assert loaded.step_id.step in range(10, 10 * NUM_SAVES + 1, 10)
        assert_same(loaded.state["part"], state_of(loaded.step_id.step, 0))
        assert loaded.world_size == NUM_RANKS
    store = LocalStore(str(scratch / "run"))
    attempt = claim_attempt(store, canonical_json({}))
    assert all(attempt > committed.step_id.attempt for committed in committed_steps(store))


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), keep_last=st.sampled_from([2, 3]))
def test_a_mirror_that_is_not_a_save_behind_loses_one_at_most(seed, keep_last, scratch):
    """
    With two steps kept, the one before the newest is whole until the newest has been for as long as one save takes.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    states = history(keep_last)
    lag = 2 * NUM_RANKS - 1  # each rank writes a blob and a manifest
    newest = newest_of(mirrored(states, seed, lag, scratch / "run"), scratch / "whole")
    loaded, _ = resume(scratch / "run")

    assert (loaded.step_id.step if loaded else 0) >= newest - 10


def test_elsewhere_a_step_that_lacks_something_is_a_loss(scratch, caplog):
    """
    A bucket loses nothing by itself: if all steps lack something, a person must know.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    mirrored([history(2)[-1]], 0, 0, scratch / "run")
    for blob in scratch.rglob("*.safetensors"):
        blob.unlink()

    with pytest.raises(NothingToResumeError):
        resume(scratch / "run", is_mirror=False)
    loaded, told = resume(scratch / "run")
    assert loaded is None
    assert "steps has been copied completely, so training begins anew: " in caplog.text
    assert [event.step for event in told][:2] == [50, 40]
    assert all(isinstance(event, CheckpointRejected) for event in told)


def test_a_changed_byte_is_a_loss_also_in_a_mirror(scratch):
    """
    A mirror has whole files: what is damaged has not just not come yet.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    mirrored([history(2)[-1]], 0, 0, scratch / "run")
    for blob in scratch.rglob("*.safetensors"):
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)

    with pytest.raises(NothingToResumeError):
        resume(scratch / "run")


def test_a_session_on_sagemaker_begins_anew_where_nothing_whole_has_come(tmp_path, monkeypatch):
    """
    It knows by itself that its folder is a mirror; what it saves then is another attempt's.
    """
    mirrored([history(2)[-1]], 0, 0, tmp_path / "run")
    for blob in tmp_path.rglob("*.safetensors"):
        blob.unlink()
    config = SpotConfig(url=str(tmp_path / "run"), every_steps=10)

    def train():
        session = SpotSession(config)
        session.register("part", Holder(state_of(0)))
        try:
            resumed = session.resume()
            session.finish(1)
            return resumed
        finally:
            session.close()

    with pytest.raises(NothingToResumeError):
        train()
    monkeypatch.setenv("SM_TRAINING_ENV", "{}")
    assert train() is None
    assert committed_steps(LocalStore(str(tmp_path / "run")))[-1].step_id.attempt > 1
