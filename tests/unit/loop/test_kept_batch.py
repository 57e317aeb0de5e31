"""The gradient accumulation with which a step keeps its batches, on other numbers of processes."""

from __future__ import annotations

import pytest

from spot_plugins.loop.kept_batch import accumulation_that_keeps


@pytest.mark.parametrize(
    ("before", "processes", "accumulation"),
    [(8, 1, 8), (8, 2, 4), (8, 8, 1), (6, 3, 2), (2, 1, 2)],
)
def test_a_number_that_divides_is_kept(before, processes, accumulation):
    """The batches of a step are those of before, and a line says what changes."""
    said = []
    kept = accumulation_that_keeps(
        before, 1000, at_once=processes, num_processes=processes, advice=None, say=said.append
    )
    assert kept == accumulation
    assert said == [
        f"gradient_accumulation_steps={accumulation} on {processes} processes: an optimizer step is made of {before} "
        f"batches, as before"
    ]


def test_nothing_changes_if_the_batches_are_the_same(recwarn):
    """Nothing is said, whether the loop accumulates or not."""
    for advice in (None, "it does not"):
        assert accumulation_that_keeps(4, 4, at_once=2, num_processes=2, advice=advice, say=pytest.fail) is None
    assert not recwarn.list


def test_a_number_that_does_not_divide_is_named():
    with pytest.warns(UserWarning, match="made of 3 batches now instead of 8, which do not divide over 3 processes"):
        assert accumulation_that_keeps(8, 3, at_once=3, num_processes=3, advice=None, say=pytest.fail) is None


def test_a_loop_that_does_not_accumulate_gets_advice():
    """The loop has to do its part."""
    told = "now instead of 8, because of this, and accumulation makes up for another number of processes"
    with pytest.warns(UserWarning, match=told):
        assert accumulation_that_keeps(8, 4, at_once=4, num_processes=4, advice="of this", say=pytest.fail) is None
