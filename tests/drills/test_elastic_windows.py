"""Trainings that accumulate gradients and come back on other numbers of ranks, under every host."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import groupby, product

import pytest
from exactness import newest_step, samples_by_step
from launching import train

from spot_plugins.data import ElasticSampler

SAMPLES, EPOCHS, BATCH = 101, 2, 2
HOSTS = ["lightning", "accelerate", "bare"]
SEQUENCES = {
    "2-3-2": [(2, 4), (3, 5), (2, None)],
    "4-3-4": [(4, 2), (3, 3), (4, None)],
    "1-4-1-2": [(1, 3), (4, 5), (1, 9), (2, None)],
}
"""Numbers of ranks, and the step in which each of these lives is preempted."""

WINDOWS = [(1, False), (2, False), (3, False), (4, False), (2, True)]
"""Batches that each rank accumulates, and whether a step may scale with the ranks."""
PER_STEP = {"lightning": lambda ranks, accumulate: 1, "accelerate": lambda ranks, accumulate: ranks}
PER_STEP["bare"] = lambda ranks, accumulate: ranks * accumulate
"""Steps of the schedule for each optimizer step of the first life."""


def cases():
    for host, sequence, (accumulate, scales) in product(HOSTS, SEQUENCES, WINDOWS):
        is_chosen = (sequence, accumulate, scales) == ("2-3-2", 2, False)
        yield pytest.param(host, sequence, accumulate, scales, marks=() if is_chosen else pytest.mark.soak)


@pytest.mark.parametrize(("host", "sequence", "accumulate", "scales"), [*cases()])
def test_every_step_has_its_samples_and_the_schedule_goes_by_them(host, sequence, accumulate, scales, tmp_path):
    """
    A step has as many samples as in the first life if these divide over the ranks, and else those of the window that
    was set. Only the last step of an epoch is smaller. The schedule is where the first life would have been after the
    same batches. Under Accelerate it counts the last step of an epoch as a whole one.
    """
    settings = {"host": host, "samples": SAMPLES, "epochs": EPOCHS, "batch": BATCH, "accumulate": accumulate}
    if scales:
        settings |= {"elastic_batch": "scale", "frequency": accumulate}
    lives = SEQUENCES[sequence]
    folder = tmp_path / "run"
    trace, num_made = [], {}
    for ranks, stop_in in lives:
        life = {**settings, "ranks": ranks, "stop_in": stop_in}
        train("elastic_train", folder, life, expect=0 if stop_in is None else 143)
        newest = newest_step(folder)  # a step whose window was left in a validation is not trained yet
        trace += [entry for entry in taken_away(folder / "trace.jsonl") if entry[1] <= newest]
        num_made |= {step: number for step, number in taken_away(folder / "schedule.jsonl") if step <= newest}

    steps = samples_by_step(trace)
    assert [step for _, step in sorted(steps)] == [*range(1, len(steps) + 1)]
    ranks_of = {step: 1 + max(rank for _, each, rank, *_ in trace if each == step) for _, step in steps}
    assert [number for number, _ in groupby(ranks_of[step] for _, step in sorted(steps))] == [life[0] for life in lives]
    at_first = lives[0][0] * accumulate * BATCH
    due = Fraction(0)  # steps of the schedule, in steps of the first life
    sampler = ElasticSampler(SAMPLES, seed=7)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order = list(sampler) * 2
        position = 0
        for key in sorted(key for key in steps if key[0] == epoch):
            taken, ranks = steps[key][0], ranks_of[key[1]]
            is_kept = not scales and at_first % (ranks * BATCH) == 0
            size = at_first if is_kept else ranks * accumulate * BATCH
            assert num_made[key[1]] == math.floor(due * PER_STEP[host](lives[0][0], accumulate)), key
            assert taken == sorted(order[position : position + len(taken)]), key
            position += len(taken)
            assert len(taken) == size or (position >= SAMPLES and len(taken) < size), key
            num_batches = ranks * math.ceil(len(taken) / (ranks * BATCH))
            due += Fraction(size if host == "accelerate" else num_batches * BATCH, at_first)
        assert position >= SAMPLES
        if host == "lightning":  # which makes no step there if the frequency is another one
            due = Fraction(math.ceil(due * accumulate) // accumulate if scales else math.ceil(due))


def taken_away(path):
    """Return the lines of a file, and remove it."""
    values = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return values
