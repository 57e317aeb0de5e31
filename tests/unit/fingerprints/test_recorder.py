"""Steps that are trained twice: what differs is named, and what does not is not. Each life is a real session."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from hearing import next_pusher, pusher_pid, until, until_end_known, until_pushers_end
from launching import exit_codes, launch
from shared_files import write_nothing, write_out
from steps import Holder, state_of
from twice_train import CHANGED, SAVED, DiedError, run

from spot_plugins.config import SpotConfig
from spot_plugins.events import EventBus, Resumed, StepDiffers
from spot_plugins.fingerprints import KINDS, Recorder, compare_runs, read, ring
from spot_plugins.fingerprints.earlier import ADVICE, Comparison, EarlierStep
from spot_plugins.fingerprints.record import NO_DIGEST, StepRecord
from spot_plugins.fingerprints.ring import RingId
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalDisk
from spot_plugins.testing import run_thread_ranks

DIED = 9
CHANGES = [kind for kind in KINDS if kind != "cuda"]


def die(folder, **settings):
    with pytest.raises(DiedError):
        run(folder, **{"die_at": DIED, **settings})


@pytest.fixture(scope="module")
def first_life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    die(folder)
    until_pushers_end()  # they still write the event log of an ended session
    return folder


@pytest.fixture
def folder(first_life, tmp_path):
    """Return the folder of a run whose first attempt has stored step 5, and died after step 9."""
    shutil.copytree(first_life, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """Return the URL of a run that was never interrupted, and its training."""
    folder = tmp_path_factory.mktemp("control")
    _, training = run(folder)
    return str(folder / "run"), training


def differences(heard):
    return [(event.step, event.attempt, event.what) for event in heard.of(StepDiffers)]


def test_every_kind_has_its_advice():
    assert [*ADVICE] == [*KINDS]


@pytest.mark.parametrize("local", ["local", None])
def test_a_step_that_is_trained_again_is_the_same(local, control, tmp_path, caplog, monkeypatch):
    """Nothing is said, and the digests over all steps are those of a training that was never interrupted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    die(tmp_path, local=local)
    heard, _ = run(tmp_path, local=local)
    url = str(tmp_path / "run")

    assert [event.step for event in heard.of(Resumed)] == [SAVED]
    assert differences(heard) == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert compare_runs(url, control[0]) == []
    assert read(url).hashes == read(control[0]).hashes
    assert min(read(url).digests.values()) > 0


MEANINGS = {
    "data": "The position in the training data differs.",
    "rates": "The learning rates, momentums or weight decays differ.",
    "accumulation": "The step is made of another number of batches.",
    "torch": "The random stream of torch on the CPU differs.",
    "python": "The random stream of Python differs,",
    "numpy": "The random stream of numpy differs,",
    "cuda": "The random stream of a CUDA device differs.",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_difference_has_its_words(kind, caplog):
    """A CUDA device is not needed for those of its stream."""
    earlier = StepRecord(CHANGED, NO_DIGEST, (1,) * len(KINDS))
    hashes = tuple(2 if each == kind else 1 for each in KINDS)

    Comparison({CHANGED: EarlierStep(1, earlier)}, RingId(2, 0, 1), EventBus()).compare(earlier._replace(hashes=hashes))

    [warning] = [record.getMessage() for record in caplog.records]
    assert MEANINGS[kind] in warning
    assert ADVICE[kind] in warning


@pytest.mark.parametrize("kind", CHANGES)
def test_a_difference_is_named_once(kind, folder, caplog):
    """The event has the first step that differs, the attempt before, and exactly the kind. The warning says more."""
    heard, _ = run(folder, change=kind)

    assert differences(heard) == [(CHANGED, 1, (kind,))]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"step {CHANGED} is not the step {CHANGED} that attempt 1 trained before it ended. ")
    assert MEANINGS[kind] in warning
    assert ADVICE[kind] in warning
    assert [other for other in ADVICE if other != kind and ADVICE[other] in warning] == []


def test_the_records_of_a_killed_process_survive(tmp_path):
    """They were in memory when the SIGKILL came, and its pusher process brings them to the disk."""
    process = launch("twice_train", (tmp_path, DIED), environment={}, output=tmp_path / "output")
    assert exit_codes([process]) == [-signal.SIGKILL], (tmp_path / "output").read_text()
    until(lambda: DIED in on_disk(tmp_path), "the step before the kill is on the disk")

    heard, _ = run(tmp_path, change="torch")

    assert differences(heard) == [(CHANGED, 1, ("torch",))]


@contextmanager
def trained(folder, num_steps):
    """Yield a session, and a function that trains its next *num_steps* steps. Its steps are in no checkpoint."""
    with SpotSession(
        SpotConfig(url=str(folder / "run"), every_steps=10**6, local_dir=str(folder / "local"))
    ) as session:
        session.register("part", Holder(state_of(1)))
        session.resume()
        steps = itertools.count(1)
        yield session, lambda: [session.after_step(next(steps)) for _ in range(num_steps)]


def on_disk(folder):
    return sorted(ring.read(str(folder / "local" / "fingerprints"), RingId(1, 0, 1)))


def test_the_records_are_on_the_disk_while_it_trains(tmp_path):
    """So those older than a second survive the end of both processes, and a later pusher process writes all again."""
    with trained(tmp_path, 3) as (session, train):
        train()
        until(lambda: on_disk(tmp_path) == [1, 2, 3], "the steps are on the disk")
        os.kill(first := pusher_pid(session), signal.SIGKILL)
        train()
        os.kill(second := next_pusher(session, first), signal.SIGKILL)
        until_end_known(session, second)
        with session._opened.pusher._sending:  # whoever would start another process has it until it runs
            assert pusher_pid(session) is None  # one that dies again and again must not be started for ever
        assert on_disk(tmp_path)[:3] == [1, 2, 3]
        train()
        session.save(9)
        until(lambda: on_disk(tmp_path) == [*range(1, 10)], "the next save starts another one, which writes all")


def test_a_pusher_that_is_killed_is_replaced_for_the_records_alone(tmp_path):
    """There is nothing to save. The steps after its death survive as all others do."""
    with trained(tmp_path, 3) as (session, train):
        train()
        os.kill(first := pusher_pid(session), signal.SIGKILL)
        next_pusher(session, first)
        train()
        until(lambda: on_disk(tmp_path) == [*range(1, 7)], "the steps are on the disk")


def test_an_attempt_that_dies_early_does_not_hide_the_one_before(folder):
    """Step 6 is compared with the second attempt, and steps 7 to 9 with the first, which alone has trained them."""
    die(folder, die_at=6)

    heard, _ = run(folder, change="numpy")

    assert differences(heard) == [(CHANGED, 1, ("numpy",))]


def test_the_later_of_two_attempts_counts(folder):
    """A change that was told is not told again by the next attempt, which trains the changed steps again."""
    die(folder, change="torch")

    heard, _ = run(folder, change="torch")

    assert differences(heard) == []


def test_a_stream_that_stays_another_is_told_once(folder):
    """Steps 7, 8 and 9 all differ."""
    die(folder, change="torch")
    heard, _ = run(folder)

    assert differences(heard) == [(CHANGED, 2, ("torch",))]


def test_a_run_that_begins_again_is_not_compared(tmp_path):
    """Without a checkpoint nothing is continued, and a program without a seed has other random numbers."""
    die(tmp_path, die_at=3)
    heard, _ = run(tmp_path, change="data")

    assert heard.of(Resumed) == []
    assert differences(heard) == []


def test_another_run_at_the_same_url_is_not_compared(folder):
    """Its file is still there, but it did not come to step 5 by the same steps."""
    place, own = str(folder / "local" / "fingerprints"), RingId(1, 0, 1)
    known = ring.read(place, own)
    foreign = ring.Ring(place, own)
    for step, record in known.items():
        foreign.write(step, record._replace(before=bytes(8), hashes=(1,) * len(KINDS)).encode())
    write_out(foreign)

    heard, _ = run(folder)

    assert sorted(known) == [*range(1, DIED + 1)]
    assert differences(heard) == []


def test_another_number_of_ranks_is_not_compared(folder):
    """Other ranks get other data. The digests begin anew, and say so."""
    lives = run_thread_ranks(2, lambda ranks: run(folder, ranks=ranks, change="data"))

    assert [differences(heard) for heard, _ in lives] == [[], []]
    assert [read(str(folder / "run"), rank=rank).first_step for rank in range(2)] == [SAVED + 1] * 2


def test_ranks_that_are_threads_have_no_streams_of_their_own(tmp_path):
    """They draw from the same streams in no fixed order. All the rest of a step is looked at."""

    def twice(ranks):
        die(tmp_path, ranks=ranks)
        return differences(run(tmp_path, ranks=ranks, change="data")[0])

    assert run_thread_ranks(2, twice) == [[(CHANGED, 1, ("data",))]] * 2


def test_a_disk_that_takes_no_file_is_no_error(tmp_path, caplog):
    """Fingerprints go to the store all the same."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "fingerprints").touch()
    die(tmp_path)
    heard, _ = run(tmp_path, change="data")

    assert differences(heard) == []
    assert len(read(str(tmp_path / "run")).hashes) == 12
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_error_ends_no_training(tmp_path, caplog):
    """It is logged once, and from then on no step is looked at."""
    recorder = Recorder(str(tmp_path), LocalDisk(None), RingId(1, 0, 1), EventBus(), write_nothing)
    recorder.begin(None, [])
    recorder.record("no number", (), 1)
    recorder.record("no number", (), 1)
    recorder.close()

    [record] = caplog.records
    assert "the fingerprint of step no number failed" in record.getMessage()


@pytest.mark.parametrize("state", [None, {}, {"format": 2}, {"format": 1, "step": -1}, [1], "text"])
def test_fingerprints_that_make_no_sense_are_as_good_as_none(state, tmp_path):
    """A checkpoint of a later version, or one that was forged, is resumed all the same."""
    recorder = Recorder(str(tmp_path), LocalDisk(None), RingId(2, 0, 1), EventBus(), write_nothing)
    recorder.load_state_dict(state)
    recorder.begin(5, [])
    recorder.record(6, (), 1)

    assert recorder.state_dict()["first_step"] == 6
    recorder.close()


def test_a_checkpoint_without_fingerprints_is_resumed(control, tmp_path, monkeypatch):
    """An earlier version has saved it."""
    with monkeypatch.context() as patch:
        patch.setattr("spot_plugins.state.registry.Registry.items", _without_fingerprints)
        patch.setattr("spot_plugins.state.registry.Registry._encode", _encode_without_fingerprints)
        die(tmp_path)
    heard, training = run(tmp_path)

    assert [event.step for event in heard.of(Resumed)] == [SAVED]
    assert torch.equal(training.model.weight, control[1].model.weight)
    with pytest.raises(LookupError, match="step 5 was saved without fingerprints"):
        read(str(tmp_path / "run"), step=SAVED)
    assert read(str(tmp_path / "run")).first_step == SAVED + 1


def _without_fingerprints(registry):
    return ((name, part) for name, part in registry._parts.items() if name != "fingerprints")


def _encode_without_fingerprints(registry):
    from spot_plugins.state import encode

    return encode({name: part.state_dict() for name, part in _without_fingerprints(registry)})
