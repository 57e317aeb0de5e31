"""A SIGTERM or a death under a real launcher: all ranks save one step, all processes end, and the job goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from itertools import product

import pytest
from exactness import References, assert_same_training, events_of, newest_step, resumed_steps
from launching import PROGRAMS, launcher, start, train
from remains import Remains

SETTINGS = {"workers": 2, "samples": 83, "every_steps": 1000}
PAIR = {"ranks": 2, "samples": 83}
GRACE_S = 60  # what the trainings say
HOSTS = {"torchrun": "lightning_train", "Lightning's own": "lightning_train", "accelerate launch": "accelerate_train"}

CHOSEN = {("torchrun", 1), ("Lightning's own", 1), ("accelerate launch", 0)}
ALONE = [
    pytest.param(name, rank, marks=[] if (name, rank) in CHOSEN else pytest.mark.soak)
    for name, rank in product(HOSTS, range(2))
]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return {
        training: References(partial(train, training), tmp_path_factory.mktemp)
        for training in ("lightning_train", "accelerate_train")
    }


@pytest.fixture
def remains():
    remains = Remains()
    yield remains
    remains.kill()


def events(folder, rank, name):
    return events_of(folder, rank, name) if (folder / f"events-{rank}.jsonl").exists() else []


def wait_until(condition, what, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"it ended with {process.poll()} before {what}"
        assert time.monotonic() < deadline, f"no {what} within five minutes"
        time.sleep(0.02)


@pytest.mark.sampled
@pytest.mark.parametrize(("ranks", "name"), [(1, "python"), (2, "torchrun"), (2, "Lightning's own")])
def test_a_sigterm_to_the_launcher_saves_one_step_and_leaves_nothing_behind(ranks, name, remains, tmp_path):
    """
    The launcher signals its processes, workers included. All ranks commit the same step well within the grace, no
    process stays, no line behind fit() runs, and the same command goes on and ends well.
    """
    settings = {**SETTINGS, "ranks": ranks}
    command = [sys.executable, str(PROGRAMS / "launched.py")] if name == "python" else launcher(name)
    process = start(command, tmp_path, {**settings, "wait_at": ["batch", 7]}, remains.environment)
    everyone_waits = lambda: all(events(tmp_path, rank, "Awaiting") for rank in range(ranks))  # noqa: E731
    wait_until(everyone_waits, "training", process)
    if name == "torchrun":
        process.terminate()  # torchrun passes it on, to the process group of each rank
    else:
        os.killpg(process.pid, signal.SIGTERM)  # as a shell or a container runtime does
        os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(timeout=300)
    remains.assert_nothing(within_s=30)

    assert code != 0
    if ranks == 1:
        assert code == 143
    left = [event for rank in range(ranks) for event in events(tmp_path, rank, "Leaving")]
    assert [event["durable"] for event in left] == [True] * ranks
    assert {event["step"] for event in left} == {newest_step(tmp_path)}
    assert min(event["left_s"] for event in left) > GRACE_S / 2
    assert not (tmp_path / "after-fit").exists()

    code = start(command, tmp_path, settings, remains.environment).wait(timeout=300)

    assert code == 0, (tmp_path / "output.txt").read_text()[-3000:]
    assert [resumed_steps(tmp_path, rank) for rank in range(ranks)] == [[left[0]["step"]]] * ranks


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "rank"), ALONE)
def test_a_sigterm_to_one_rank_alone_is_one_to_all(name, rank, references, remains, tmp_path):
    """
    The launcher hears nothing of it. It finds that its ranks ended, each with 143 and all with one step, and ends.
    """
    settings = {**PAIR, "at": ["forward", 11], "to": [[rank, 0]]}
    process = start(launcher(name), tmp_path, settings, remains.environment)
    code = process.wait(timeout=300)
    [sent] = events(tmp_path, rank, "Sent")
    remains.assert_nothing(within_s=sent["at"] + GRACE_S - time.monotonic())

    assert code == (143 if name == "Lightning's own" else 1), (tmp_path / "output.txt").read_text()[-3000:]
    left = [event for rank in range(2) for event in events(tmp_path, rank, "Leaving")]
    assert [event["durable"] for event in left] == [True, True]
    assert {event["step"] for event in left} == {newest_step(tmp_path)}

    train(HOSTS[name], tmp_path, PAIR, expect=0)
    assert [resumed_steps(tmp_path, rank) for rank in range(2)] == [[left[0]["step"]]] * 2
    assert_same_training(tmp_path, references[HOSTS[name]](PAIR), ranks=2)


def test_torchrun_ends_the_others_of_a_rank_that_is_killed(references, remains, tmp_path):
    """
    Nothing hangs, no process stays, and the next attempt goes on behind the newest step that is committed.
    """
    settings = {**PAIR, "at": ["forward", 11], "signal": "SIGKILL", "to": [[1, 0]]}
    code = start(launcher("torchrun"), tmp_path, settings, remains.environment).wait(timeout=300)
    [sent] = events(tmp_path, 1, "Sent")
    remains.assert_nothing(within_s=sent["at"] + GRACE_S - time.monotonic())
    step = newest_step(tmp_path)

    assert code == 1
    train("lightning_train", tmp_path, PAIR, expect=0)
    assert [resumed_steps(tmp_path, rank) for rank in range(2)] == [[] if step is None else [step]] * 2
    assert_same_training(tmp_path, references["lightning_train"](PAIR), ranks=2)
