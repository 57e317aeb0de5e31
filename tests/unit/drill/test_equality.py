"""The comparison of fingerprints of a rehearsal with those of its control."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hearing import Heard, until_idle
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.drill.equality import final_difference, first_difference, num_compared, unseeded_kinds
from spot_plugins.drill.faults import Signal
from spot_plugins.drill.lives import Injected, Life, LifeLog, Run
from spot_plugins.drill.plan import Pace
from spot_plugins.drill.verdict import of_equality
from spot_plugins.events import Committed
from spot_plugins.fingerprints.record import KINDS, NO_DIGEST, StepRecord
from spot_plugins.fingerprints.ring import RingId
from spot_plugins.fingerprints.seen import Seen
from spot_plugins.session import SpotSession


def record(step, **changed):
    hashes = tuple(changed.get(kind, 100 + step) for kind in KINDS)
    return StepRecord(step, NO_DIGEST, hashes)


def life(number, steps, *, world_size=1, attempt=None, changed=None, fault_at=None):
    """A life that has trained *steps* on each rank. *changed* has hashes by rank and step."""
    changed = changed or {}
    made = Life(number=number, command=("python",), output=Path("out"), began_at=0.0)
    for rank in range(world_size):
        records = {step: record(step, **changed.get((rank, step), {})) for step in steps}
        made.records[RingId(attempt or number, rank, world_size)] = records
    if fault_at is not None:
        fault = Injected(fault=Signal(), told="SIGTERM", at=1.0, step=fault_at, committed=0, limit_s=30.0)
        made.injected.append(fault)
    return made


def run(*lives):
    return Run(lives=lives, url="", words=())


CONTROL = run(life(1, range(1, 21), world_size=2))


def test_a_clean_rehearsal_has_no_difference():
    """Steps that are trained twice count twice."""
    rehearsal = run(life(1, range(1, 11), world_size=2), life(2, range(8, 21), world_size=2))
    assert first_difference(CONTROL, rehearsal) is None
    assert num_compared(CONTROL, rehearsal) == 2 * (10 + 13)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_that_differs_is_named(kind, rank):
    """By step, rank, start of the command and meaning, though later steps differ in more."""
    changed = {(rank, 12): {kind: 7}, (0, 15): {"rates": 9, "data": 9}}
    rehearsal = run(
        life(1, range(1, 11), world_size=2, fault_at=10), life(2, range(10, 21), world_size=2, changed=changed)
    )
    found = first_difference(CONTROL, rehearsal)
    assert (found.step, found.rank, found.life, found.what) == (12, rank, 2, (kind,))
    assert found.text.startswith(f"step 12, rank {rank}: ")
    assert found.advice


def seen(life, places, weights):
    """Let a drill have seen *places* and *weights* of *life*, by step, on each rank."""
    steps = {step: Seen(places.get(step, ()), weights.get(step)) for step in {**places, **weights}}
    life.log = LifeLog(seen=dict.fromkeys(life.records, steps))
    return life


def test_the_first_step_with_other_weights_is_named():
    """Though all fingerprints are the same. Where one of the two is not known, nothing is compared."""
    control = run(seen(life(1, range(1, 21)), {}, {step: 100 + step for step in range(1, 21)}))
    weights = {step: 100 + step + (step >= 15) for step in range(11, 21) if step != 15}
    rehearsal = run(life(1, range(1, 11), fault_at=10), seen(life(2, range(10, 21)), {}, weights))
    found = first_difference(control, rehearsal)
    assert (found.step, found.rank, found.life, found.what) == (16, 0, 2, ("weights",))
    assert found.text == "step 16, rank 0: the weights at its end are other ones"
    assert "generators" in found.advice
    assert first_difference(control, rehearsal, but=("weights",)) is None


def test_the_data_of_the_first_step_that_differs_are_named():
    """As far as both trainings know them."""
    places = {step: (0, 1, 4 * step) for step in range(1, 21)}
    changed = {(0, 12): {"data": 7}}
    control = run(seen(life(1, range(1, 21)), places, {}))
    late = seen(life(2, range(10, 21), changed=changed), {12: (0, 1, 52)}, {})
    found = first_difference(control, run(life(1, range(1, 11), fault_at=10), late))
    assert found.text.endswith("another one: it trained 48..51 of epoch 1 instead of 44..47 of epoch 1")
    blind = life(2, range(10, 21), changed=changed)
    found = first_difference(control, run(life(1, range(1, 11), fault_at=10), blind))
    assert found.text == "step 12, rank 0: the position in the training data is another one"


def test_on_other_ranks_only_learning_rates_are_compared():
    """Each rank then gets other samples and draws other numbers."""
    other = {(0, 12): {"data": 7, "torch": 7}}
    assert first_difference(CONTROL, run(life(1, range(1, 21), changed=other))) is None
    other[0, 14] = {"rates": 7}
    assert first_difference(CONTROL, run(life(1, range(1, 21), changed=other))).step == 14


def test_streams_of_ranks_that_were_away_are_not_compared():
    """A rank that comes back begins its streams anew. Before that, everything counts."""
    lives = (life(1, range(1, 6), world_size=2), life(2, range(6, 11)))
    new = {(1, step): {"torch": 7} for step in range(11, 21)}
    assert first_difference(CONTROL, run(*lives, life(3, range(11, 21), world_size=2, changed=new))) is None
    first = life(1, range(1, 6), world_size=2, changed={(1, 5): {"torch": 7}})
    assert first_difference(CONTROL, run(first, *lives[1:])).step == 5


def test_streams_that_nobody_seeds_are_found_before_the_first_fault():
    """They would differ in any two starts, so they say nothing about the resume."""
    changed = {(1, step): {"numpy": 1, "python": 2} for step in range(1, 11)}
    rehearsal = run(
        life(1, range(1, 11), world_size=2, changed=changed, fault_at=9),
        life(2, range(10, 21), world_size=2, changed={(0, 11): {"torch": 5}}),
    )
    assert set(unseeded_kinds(CONTROL, rehearsal)) == {"python", "numpy"}
    assert first_difference(CONTROL, rehearsal).step == 1
    assert first_difference(CONTROL, rehearsal, but=("python", "numpy")).what == ("torch",)


def test_a_difference_after_the_fault_is_none_of_the_seed():
    """A training that goes on after the signal may differ by then."""
    rehearsal = run(life(1, range(1, 13), world_size=2, changed={(0, 11): {"data": 5}}, fault_at=10))
    assert unseeded_kinds(CONTROL, rehearsal) == ()


def test_weights_that_differ_before_the_first_fault_have_a_remedy_of_their_own():
    """Nothing else does, so all streams are seeded. An operation gives another result each time."""
    control = run(seen(life(1, range(1, 21)), {}, dict.fromkeys(range(1, 21), 1)))
    rehearsal = run(seen(life(1, range(1, 11), fault_at=9), {}, dict.fromkeys(range(1, 11), 2)))
    pace = Pace(last_step=20, step_s=0.1, longest_gap_s=1.0, grace_s=30.0)
    (promise,) = of_equality(control, rehearsal, pace)
    assert not promise.is_kept
    assert promise.text.startswith("in a step before any fault the weights at its end are other ones: two starts of ")
    assert "and call torch.use_deterministic_algorithms(True), so that it can be judged" in promise.text
    changed = {(0, 5): {"torch": 7}}
    (promise,) = of_equality(CONTROL, run(life(1, range(1, 11), world_size=2, changed=changed, fault_at=9)), pace)
    assert "the random stream of torch on the CPU is another one" in promise.text
    assert "deterministic" not in promise.text


def trained(url, *, every_steps, weight=1.0):
    """Train four steps at *url*, and change a metric between the last one and the end of the program."""
    heard = Heard()
    with SpotSession(SpotConfig(url=url, every_steps=every_steps, notice_sources=()), on_event=heard) as session:
        accuracy = torch.zeros(1)
        session.register("model", Holder({"weight": torch.tensor([weight])}))
        session.register("metrics", Holder({"accuracy": accuracy}))
        session.resume()
        for step in range(1, 5):
            session.after_step(step)
            if step % every_steps == 0:
                heard.wait(Committed, step=step)
                until_idle(session)  # or the next save might be put off
        accuracy += 0.5
        session.finish(4)
    return Run(lives=(life(1, range(1, 5)),), url=url, words=())


def test_what_changes_after_the_last_step_counts_only_if_both_were_saved_at_one_moment(tmp_path):
    """A validation at the end of an epoch changes metrics and random streams, but neither models nor optimizers."""
    at_step = trained(f"file://{tmp_path}/step", every_steps=2)
    at_end = trained(f"file://{tmp_path}/end", every_steps=3)
    other = trained(f"file://{tmp_path}/other", every_steps=3, weight=2.0)

    assert final_difference(at_step, at_end, 4).texts == ()
    assert "only models and optimizers were compared" in final_difference(at_step, at_end, 4).note
    assert final_difference(at_step, other, 4).texts == ("model/weight of rank 0 differs in 1 elements, by 1 at most",)
    assert final_difference(at_end, at_end, 4).note == ""
