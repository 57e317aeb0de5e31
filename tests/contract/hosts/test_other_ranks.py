"""A trainer of transformers, its own or TRL's, that comes back on other numbers of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from contract.hosts.lives import HOSTS, TRAINERS, live_apart
from contract.hosts.situation import Interruption, Program

SEQUENCES = {
    "2, 1, 2": (1, [(2, 4), (1, 11), (2, None)]),
    "2, 1, 2, accumulated": (2, [(2, 7), (1, 10), (2, None)]),
    "3, 2": (2, [(3, 5), (2, None)]),
    "3, 2, in the second epoch": (2, [(3, 12), (2, None)]),
}
"""Batches of a rank per step at first; for each life its ranks, and the batch before which the last of them leaves."""


@pytest.mark.soak
@pytest.mark.parametrize(("accumulate", "sequence"), SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("host", [host for host in HOSTS if host in TRAINERS])
def test_every_step_has_the_samples_and_the_rate_that_it_would_have_had(host, accumulate, sequence, tmp_path):
    """Each sample comes once in an epoch, and the schedule goes by samples, because a step keeps its number of them."""
    folders = [tmp_path / name for name in ("alone", "run")]
    for folder in folders:
        folder.mkdir()
    program = Program(num_samples=48, batch_size=2, accumulate=accumulate, schedule="step", num_ranks=sequence[0][0])

    alone = live_apart(host, program, folders[0])
    lives = []
    for ranks, batch in sequence:
        due = batch and Interruption(number=batch, rank=ranks - 1)
        lives.append(live_apart(host, replace(program, num_ranks=ranks), folders[1], due))
        said = [(folders[1] / f"output-{rank}.txt").read_text()[-2000:] for rank in range(ranks)]
        assert [each.end for each in lives[-1]] == ["preempted" if due else "finished"] * ranks, said

    expected, found = steps_of([alone]), steps_of(lives)
    assert found == expected
    for epoch in range(program.num_epochs):
        seen = Counter(number for (each, _), (numbers, _) in found.items() if each == epoch for number in numbers)
        assert seen == Counter(range(program.num_samples))
    assert {len(numbers) for numbers, _ in found.values()} == {2 * accumulate * sequence[0][0]}


def steps_of(lives):
    """Return the samples and the learning rates of each step that counts, by epoch and step, over all ranks."""
    steps = {}
    for number, life in enumerate(lives):
        end = lives[number + 1][0].resumed_from if number + 1 < len(lives) else float("inf")
        for outcome in life:
            for epoch, step, numbers, rates, _ in outcome.rows:
                if step < end:
                    samples, known = steps.setdefault((epoch, step), ([], rates))
                    samples.extend(numbers)
                    assert rates == known
    return {key: (sorted(samples), rates) for key, (samples, rates) in steps.items()}
