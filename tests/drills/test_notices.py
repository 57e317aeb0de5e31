"""Promise 3: a notice on any rank, at any moment, makes all ranks commit the same step and leave in time."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from exactness import References, assert_same_training, events_of, newest_step, resumed_steps, what_was_seen
from hearing import until
from launching import exit_codes, launch_ranks, printed, train
from remains import Remains

from spot_plugins.format.commit import committed_steps
from spot_plugins.format.keys import EVENTS_PREFIX, merged_manifest_key
from spot_plugins.store import LocalStore

HOSTS = ("lightning", "accelerate")
PAIR = {"ranks": 2, "samples": 83}  # 9 batches per rank and epoch, the last one filled up
NUM_STEPS = 27
GRACE_S = 60  # what the trainings say

PLACES = {
    "forward": {"at": ["forward", 11]},
    "backward": {"at": ["backward", 11]},
    "optimizer step": {"at": ["optimizer", 11]},
    "validation": {"at": ["val", 9, 0]},
    "between epochs": {"at": ["epoch_end", 0]},
    "running save": {"at": ["saving", 1]},
    "resume": {"at": ["resuming"]},
    "first batch": {"at": ["forward", 1]},
    "wait for rank 1's data": {"at": ["data", 51], "slow": [1, "data", 51]},
    "wait for rank 0's first data": {"at": ["data", 1], "slow": [0, "data", 1]},
    "long first batch": {"at": ["forward", 1], "slow": [1, "forward", 1]},
}

ONLY_LIGHTNING = {
    # it puts its own signal handler, which broadcasts, in place just before
    "start of the stage": {"at": ["barrier", "run-stage"]},
    "sanity check": {"at": ["sanity"]},
}

# who gets it, and how many seconds behind the place
RECEIVERS = {
    "rank 0": [[0, 0]],
    "rank 1": [[1, 0]],
    "both": [[0, 0], [1, 0]],
    "both, 50 ms apart": [[0, 0], [1, 0.05]],
    "rank 0 twice": [[0, 0], [0, 0]],
    "rank 1 twice": [[1, 0], [1, 0.05]],
    "both twice": [[0, 0], [1, 0], [0, 0], [1, 0]],
    "both twice, 50 ms apart": [[0, 0], [0, 0.05], [1, 0.05], [1, 0.1]],
}

SOMETHING_TO_RESUME = {**PAIR, **PLACES["forward"], "to": RECEIVERS["both"]}

# every place, and every way to get it, on one of the hosts; the others are left to the soak
CHOSEN = {
    ("lightning", "forward", "rank 0"),
    ("accelerate", "backward", "rank 1"),
    ("lightning", "optimizer step", "both, 50 ms apart"),
    ("accelerate", "validation", "rank 1 twice"),
    ("lightning", "between epochs", "both"),
    ("accelerate", "running save", "rank 0 twice"),
    ("lightning", "resume", "rank 1"),
    ("accelerate", "first batch", "both twice"),
    ("lightning", "wait for rank 1's data", "rank 0"),
    ("accelerate", "wait for rank 0's first data", "rank 1"),
    ("lightning", "long first batch", "both twice, 50 ms apart"),
    ("lightning", "start of the stage", "rank 0"),
    ("lightning", "sanity check", "rank 1"),
}

DRILLS = [
    pytest.param(
        host,
        {**PAIR, **places[place], "to": RECEIVERS[receivers]},
        id=f"{host}, {place}, {receivers}",
        marks=[] if (host, place, receivers) in CHOSEN else pytest.mark.soak,
    )
    for host, places in (("lightning", PLACES | ONLY_LIGHTNING), ("accelerate", PLACES))
    for place, receivers in product(places, RECEIVERS)
]

AT_THE_END = [
    pytest.param(host, receivers, marks=[] if receivers == "both, 50 ms apart" else pytest.mark.soak)
    for host, receivers in product(HOSTS, RECEIVERS)
]

PLACES_OF_DEATH = ("forward", "backward", "validation", "running save", "resume")
CHOSEN_DEATHS = {("accelerate", "backward", 1), ("lightning", "validation", 0), ("accelerate", "running save", 1)}
DEATHS = [
    pytest.param(host, place, dying, marks=[] if (host, place, dying) in CHOSEN_DEATHS else pytest.mark.soak)
    for host, place, dying in product(HOSTS, PLACES_OF_DEATH, range(2))
]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return {host: References(partial(train, f"{host}_train"), tmp_path_factory.mktemp) for host in HOSTS}


@pytest.fixture
def remains():
    remains = Remains()
    yield remains
    remains.kill()


@pytest.mark.parametrize(("host", "settings"), DRILLS)
def test_a_notice_makes_all_ranks_leave_with_one_step(host, settings, references, remains, tmp_path):
    """
    All ranks commit the same step and end with 143. Within the grace no process is left, no zombie, no shared memory.
    The next attempt goes on behind that very step, and its end is that of a training that was never interrupted.
    """
    if settings["at"] == ["resuming"]:
        leave(host, SOMETHING_TO_RESUME, remains, tmp_path)
    step = leave(host, settings, remains, tmp_path)
    train(f"{host}_train", tmp_path, PAIR, expect=0)

    assert [resumed_steps(tmp_path, rank)[-1] for rank in range(2)] == [step, step]
    assert_same_training(tmp_path, references[host](PAIR), ranks=2)


@pytest.mark.parametrize(("host", "receivers"), AT_THE_END)
def test_a_notice_at_the_very_end_takes_nothing_away(host, receivers, references, remains, tmp_path):
    """
    A rank that has done all by then may end with 0, or die of a signal that comes behind the session. But the end is
    committed, and the next attempt has nothing left to train.
    """
    codes = interrupted(host, {**PAIR, "at": ["end"], "to": RECEIVERS[receivers]}, remains, tmp_path)
    train(f"{host}_train", tmp_path, PAIR, expect=0)

    assert set(codes) <= {0, 143, -signal.SIGTERM}, printed(tmp_path, 2)
    assert [resumed_steps(tmp_path, rank) for rank in range(2)] == [[NUM_STEPS], [NUM_STEPS]]
    for rank in range(2):
        assert what_was_seen(tmp_path, rank) == what_was_seen(references[host](PAIR), rank)


def leave(host, settings, remains, folder):
    """Run the training until it leaves because of its notice, and return the step that it left with."""
    assert interrupted(host, settings, remains, folder) == [143, 143], printed(folder, 2)
    left = [events_of(folder, rank, "Leaving")[-1] for rank in range(2)]
    assert [event["durable"] for event in left] == [True, True]
    assert left[0]["step"] == left[1]["step"] == newest_step(folder)
    return left[0]["step"]


def interrupted(host, settings, remains, folder):
    """Run the training until it ends because of its signals. Return how, once nothing is left of it."""
    processes = launch_ranks(f"{host}_train", folder, settings, remains.environment)
    remains.sessions |= {process.pid for process in processes}
    codes = exit_codes(processes)
    sent = [event["at"] for rank in range(2) for event in events_of(folder, rank, "Sent")]
    remains.assert_nothing(within_s=min(sent[-len(settings["to"]) :]) + GRACE_S - time.monotonic())
    return codes


@pytest.mark.parametrize(("host", "place", "dying"), DEATHS)
def test_a_rank_that_is_killed_ends_the_others_and_the_next_attempt_goes_on(
    host, place, dying, references, remains, tmp_path
):
    """
    Without a launcher that would end it the other rank ends by itself, for it cannot train alone. Nothing hangs and
    nothing is left, and the next attempt goes on behind the newest step that is committed.
    """
    settings = {**PAIR, **PLACES[place], "signal": "SIGKILL", "to": [[dying, 0]]}
    if settings["at"] == ["resuming"]:
        leave(host, SOMETHING_TO_RESUME, remains, tmp_path)
    codes = interrupted(host, settings, remains, tmp_path)
    step = newest_step(tmp_path)
    train(f"{host}_train", tmp_path, PAIR, expect=0)

    assert codes[dying] == -signal.SIGKILL
    assert codes[1 - dying] not in (0, None)
    assert [resumed_steps(tmp_path, rank)[-1:] for rank in range(2)] == [[] if step is None else [step]] * 2
    assert_same_training(tmp_path, references[host](PAIR), ranks=2)


@pytest.mark.parametrize("notice", [{}, {"at": ["forward", 11], "to": [[1, 0]]}], ids=["to its end", "until a notice"])
@pytest.mark.parametrize("host", HOSTS)
def test_an_attempt_that_comes_back_changes_nothing_that_can_be_seen(host, notice, remains, tmp_path):
    """
    It is stopped, its pushers too, with a step in their hands. A new attempt trains to the end. Let go on, the old one
    commits nothing and removes nothing; it reports that it is superseded, and ends as it would have. Its event log says
    so, too.
    """
    old, new, store = tmp_path / "old", tmp_path / "new", LocalStore(str(tmp_path / "run"))
    settings = {**PAIR, "url": f"file://{tmp_path}/run"}
    processes = launch_ranks(f"{host}_train", old, {**settings, **notice, "freeze": ["saving", 1]}, remains.environment)
    remains.sessions |= {process.pid for process in processes}
    pids = until(lambda: frozen(old), "all stand still")

    train(f"{host}_train", new, settings, expect=0)
    committed = committed_steps(store)
    until(
        lambda: merged_manifest_key(committed[0].step_id) in store.keys(""), "the new attempt's last manifest is merged"
    )
    before = without_log(store)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)

    assert exit_codes(processes) == [143 if notice else 0] * 2, printed(old, 2)
    remains.assert_nothing(within_s=GRACE_S)
    assert committed_steps(store) == committed
    after = without_log(store)
    assert {key: after.get(key) for key in before} == before
    assert not [key for key in after.keys() - before.keys() if not key.endswith(".safetensors")]
    for rank in range(2):
        assert events_of(old, rank, "Superseded")
        assert not events_of(old, rank, "Committed")
        assert not any(event["durable"] for event in events_of(old, rank, "Leaving"))


def without_log(store):
    """Return the objects of a run, but for its event log."""
    return {key: store.get(key) for key in store.keys("") if not key.startswith(EVENTS_PREFIX)}


def frozen(folder):
    """Return the processes of the training in *folder*, if all of them have been stopped."""
    if not all((folder / f"events-{rank}.jsonl").exists() for rank in range(2)):
        return None
    pids = [pid for rank in range(2) for event in events_of(folder, rank, "Frozen") for pid in event["pids"]]
    return pids if len(pids) == 4 and all(is_stopped(pid) for pid in pids) else None


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
