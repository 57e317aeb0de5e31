"""
A rank that is killed in its last save, when its share is not stored: the others store it, or the step before counts.

Real processes. The puts of a pusher process are held, so that a rank is killed at an exact place.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hearing import said, until, until_gone
from launching import exit_codes, launch
from ports import free_port
from steps import assert_same, assert_whole
from survivor_ranks import FIRST_SAVE, NOTICE_AT

import spot_plugins
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import committed_steps
from spot_plugins.format.keys import parse_step_id
from spot_plugins.store import LocalStore

HOLDING = Path(__file__).parents[1] / "drills" / "holding"
LAST = r"steps/0*([4-9]|1\d)-"
"""The beginning of a key of the last save. The first one is stored before anything is held."""


def shared_blob(rank):
    return rf"{LAST}\d+/r{rank:05d}-b0000"


def prepared(rank):
    return rf"{LAST}\d+/prepared-{rank:05d}-"


def manifest(rank):
    return rf"{LAST}\d+/rank-{rank:05d}-of-\d+\.json"


class Ranks:
    """Real processes, each a rank of one training of survivor_ranks.py. *holds* has a pattern of keys by rank."""

    def __init__(self, folder, num_ranks, holds=None, **settings):
        self.folder = folder
        self.num_ranks = num_ranks
        address = ("127.0.0.1", free_port())
        self.store = LocalStore(str(folder / "run"))
        self.processes = [
            launch(
                "survivor_ranks",
                (str(folder), rank, num_ranks, address, settings),
                environment=self._held_at(rank, holds[rank]) if rank in (holds or {}) else {},
                output=self.output(rank),
            )
            for rank in range(num_ranks)
        ]

    def _held_at(self, rank, pattern):
        package = Path(spot_plugins.__file__).parents[1]
        paths = [str(HOLDING), str(package), os.environ.get("PYTHONPATH", "")]
        return {
            "PYTHONPATH": os.pathsep.join(paths),
            "HOLD": pattern,
            "HELD": str(self.folder / f"held-{rank}"),
            "LET_GO": str(self.folder / f"let-go-{rank}"),
        }

    def output(self, rank):
        return self.folder / f"output-{rank}.txt"

    def said(self):
        return "\n".join(said(self.output(rank))[-4000:] for rank in range(self.num_ranks))

    def until_held(self, rank):
        held = self.folder / f"held-{rank}"
        until(lambda: held.exists() or self.processes[rank].exitcode is not None, f"rank {rank} is held")
        assert held.exists(), self.said()

    def last_keys(self):
        """The keys of the objects of the last save."""
        return {key for key in self.store.keys("steps/") if parse_step_id(key).step > FIRST_SAVE}

    def until_there(self, *patterns):
        """Wait until the last save has an object for each of *patterns*."""
        until(
            lambda: all(any(re.search(each, key) for key in self.last_keys()) for each in patterns),
            f"{patterns} are stored",
        )

    def let_go(self, rank):
        (self.folder / f"let-go-{rank}").touch()

    def pusher(self, rank):
        return int((self.folder / f"pids-{rank}").read_text().split()[1])

    def kill(self, rank, *, pusher=True):
        """Kill *rank*, with its pusher process first, so that nothing more is put."""
        if pusher:
            os.kill(self.pusher(rank), signal.SIGKILL)
        self.processes[rank].kill()
        self.processes[rank].join()

    def end(self, *ranks):
        """Wait until *ranks* end. Return their codes."""
        codes = exit_codes([self.processes[rank] for rank in ranks])
        print(self.said())
        return codes

    def content(self):
        return {key: self.store.get(key) for key in self.last_keys()}

    def committed(self):
        assert_whole(self.store)
        return [each.step_id.step for each in committed_steps(self.store)]


@pytest.fixture
def start(tmp_path):
    """Start ranks, which are killed after the test, with their pusher processes."""
    started = []

    def make(num_ranks, holds=None, **settings):
        started.append(Ranks(tmp_path, num_ranks, holds, **settings))
        return started[-1]

    yield make
    for ranks in started:
        for rank, process in enumerate(ranks.processes):
            process.kill()
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(ranks.pusher(rank), signal.SIGKILL)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Trainings that are left alone, by the number of ranks: what each rank has at its end."""
    done = {}

    def of(num_ranks):
        if num_ranks not in done:
            folder = tmp_path_factory.mktemp("alone")
            ranks = Ranks(folder, num_ranks)
            assert ranks.end(*range(num_ranks)) == [0] * num_ranks, ranks.said()
            done[num_ranks] = [torch.load(folder / f"final-{rank}.pt") for rank in range(num_ranks)]
        return done[num_ranks]

    return of


def assert_resumes_exactly(start, ranks, references):
    """The next life ends with the very bits of the training that was left alone, on every rank."""
    for file in ranks.folder.glob("final-*.pt"):
        file.unlink()
    step = ranks.committed()[0]
    assert step > FIRST_SAVE
    again = start(ranks.num_ranks)
    assert again.end(*range(ranks.num_ranks)) == [0] * ranks.num_ranks
    assert f"step {step}" in again.said()
    for rank, expected in enumerate(references(ranks.num_ranks)):
        assert_same(tupled(torch.load(ranks.folder / f"final-{rank}.pt")), tupled(expected))


def tupled(value):
    """Return *value* with its lists as dicts, which :func:`assert_same` walks through."""
    if isinstance(value, list):
        return {index: tupled(each) for index, each in enumerate(value)}
    if isinstance(value, dict):
        return {key: tupled(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize(
    ("num_ranks", "lost"),
    [(2, 1), pytest.param(3, 0, marks=pytest.mark.soak), pytest.param(3, 2, marks=pytest.mark.soak)],
)
def test_survivors_finish_the_share_of_a_rank_that_is_killed(num_ranks, lost, start, references):
    """
    It and its pusher process are killed after its prepared manifest is stored. The step is committed, and the next
    life is bit for bit the training that was left alone. With rank 0, the board ends.
    """
    ranks = start(num_ranks, {lost: shared_blob(lost)}, notice=True)
    survivors = [rank for rank in range(num_ranks) if rank != lost]
    ranks.until_held(lost)
    ranks.until_there(prepared(lost), *map(manifest, survivors))
    ranks.kill(lost)

    assert ranks.end(*survivors) == [143] * len(survivors)
    step = ranks.committed()[0]
    assert step > NOTICE_AT
    assert f"rank {lost} has ended before its share of step {step} was stored, so this rank stores it" in ranks.said()
    told = said(ranks.output(survivors[0]))
    how = "rank 0 has ended" if lost == 0 else f"rank {lost} has ended (its connection was closed)"
    assert f"step {step} is stored, though {how}" in told
    if lost != 0:
        ranks.until_there(r"/merged\.json")  # by the pusher of rank 0, whoever has stored the share
    assert_resumes_exactly(start, ranks, references)


def assert_not_committed(ranks, *survivors, says):
    """The survivors leave with 143, the step before counts, and the reason is told."""
    assert ranks.end(*survivors) == [143] * len(survivors)
    assert ranks.committed() == [FIRST_SAVE]
    assert says in ranks.said()
    assert "may NOT be stored by all ranks" in ranks.said()


def test_a_rank_that_is_killed_before_its_prepared_manifest_loses_the_step(start):
    """Nobody else knows its own state. A warning says so, and the next life begins with the step before."""
    ranks = start(2, {1: prepared(1)}, notice=True, grace_s=20.0)
    ranks.until_held(1)
    ranks.kill(1)
    assert_not_committed(
        ranks, 0, says="no other rank has stored its share: its prepared manifest is not stored, so its own state is"
    )


def test_a_rank_whose_state_has_drifted_stores_no_share(start):
    """Some of its bits are not those of the lost rank, so nothing is put under the names of that rank."""
    ranks = start(2, {1: shared_blob(1)}, notice=True, flips=0, flips_at=NOTICE_AT - 1)
    ranks.until_held(1)
    ranks.until_there(prepared(1), manifest(0))
    ranks.kill(1)
    assert_not_committed(ranks, 0, says="has other content on this rank: the ranks do not hold the same state")
    assert not [key for key in ranks.last_keys() if re.search(shared_blob(1), key)]


@pytest.mark.soak
def test_a_share_that_no_other_rank_holds_is_told_to_be_lost(start):
    """Weights are spread over the ranks. There is no prepared manifest, and the survivor leaves at once."""
    ranks = start(2, {1: shared_blob(1)}, notice=True, wrapper="fsdp")
    ranks.until_held(1)
    ranks.until_there(manifest(0))
    ranks.kill(1)
    assert_not_committed(ranks, 0, says="no other rank has stored its share: no other rank holds all of it")
    assert not [key for key in ranks.last_keys() if "prepared" in key]


@pytest.mark.soak
@pytest.mark.parametrize("first", ["the survivor", "the slow pusher"])
def test_a_pusher_that_was_only_slow_may_store_the_same_share(first, start, references):
    """Its trainer is killed. Both put the same bytes under the same names, whoever is the first."""
    holds = {1: shared_blob(1)} if first == "the survivor" else {0: shared_blob(1), 1: shared_blob(1)}
    ranks = start(2, holds, notice=True)
    ranks.until_held(1)
    ranks.until_there(prepared(1), manifest(0))
    ranks.kill(1, pusher=False)
    if first == "the survivor":
        ranks.until_there(manifest(1))
    else:
        ranks.until_held(0)
        ranks.let_go(1)
        ranks.until_there(manifest(1))
        until_gone(ranks.pusher(1))
    before = ranks.content()
    ranks.let_go(0 if first == "the slow pusher" else 1)
    assert ranks.end(0) == [143]
    until_gone(ranks.pusher(0))
    until_gone(ranks.pusher(1))
    assert {key: data for key, data in ranks.content().items() if key in before} == before
    assert_resumes_exactly(start, ranks, references)


@pytest.mark.soak
def test_a_survivor_that_is_killed_too_is_replaced(start, references):
    """It is killed between the blobs and the manifest, and it was rank 0. The next one stores the share."""
    ranks = start(3, {0: manifest(2), 2: shared_blob(2)}, notice=True)
    ranks.until_held(2)
    ranks.until_there(prepared(2), manifest(0), manifest(1))
    ranks.kill(2)
    ranks.until_held(0)
    ranks.kill(0)
    assert ranks.end(1) == [143]
    assert "rank 2 has ended before its share" in said(ranks.output(1))
    assert_resumes_exactly(start, ranks, references)


@pytest.mark.soak
def test_the_pusher_of_a_survivor_finishes_alone(start, references):
    """Its trainer is killed after the share is staged."""
    ranks = start(2, {0: shared_blob(1), 1: shared_blob(1)}, notice=True)
    ranks.until_held(1)
    ranks.until_there(prepared(1), manifest(0))
    ranks.kill(1)
    ranks.until_held(0)
    ranks.kill(0, pusher=False)
    ranks.let_go(0)
    ranks.until_there(manifest(1))
    until_gone(ranks.pusher(0))
    assert_resumes_exactly(start, ranks, references)


@pytest.mark.soak
def test_a_newer_attempt_ends_the_work_of_a_survivor(start):
    """It has resumed from the step before, so the step must not appear any more."""
    ranks = start(2, {0: shared_blob(1), 1: shared_blob(1)}, notice=True)
    ranks.until_held(1)
    ranks.until_there(prepared(1), manifest(0))
    ranks.kill(1)
    ranks.until_held(0)
    claim_attempt(ranks.store, b"")
    ranks.let_go(0)
    assert_not_committed(ranks, 0, says="this rank cannot store the share of rank 1")
