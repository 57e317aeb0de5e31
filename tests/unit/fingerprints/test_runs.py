"""Runs that are compared by what their checkpoints say."""

from __future__ import annotations

import os
import shutil

import pytest
from hearing import until_pushers_end
from twice_train import CHANGED, run

from spot_plugins.fingerprints import Difference, compare_runs, read
from spot_plugins.format.keys import StepId
from spot_plugins.format.manifest import ManifestError
from spot_plugins.testing import run_thread_ranks


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Return the URLs of runs of 12 steps, by what they do in another way."""
    folders = {change: tmp_path_factory.mktemp(str(change)) for change in (None, "rates", "torch")}
    for change, folder in folders.items():
        run(folder, change=change)
    return {change: str(folder / "run") for change, folder in folders.items()}


@pytest.mark.parametrize("kind", ["rates", "torch"])
def test_the_first_difference_is_named(kind, urls):
    """They differ from step 7 on, and not before."""
    assert compare_runs(urls[None], urls[kind]) == [Difference(rank=0, what=(kind,), step=CHANGED)]
    assert compare_runs(urls[None], urls[kind], step=5) == []
    assert compare_runs(urls[None], urls[None]) == []


def test_a_step_is_read(urls):
    recorded = read(urls[None], step=5)
    assert (recorded.step, recorded.attempt, recorded.first_step, recorded.world_size) == (5, 1, 1, 1)
    assert [*recorded.hashes] == [1, 2, 3, 4, 5]
    assert read(urls[None]).step == 12


def test_what_is_not_there_is_an_error_that_says_so(urls, tmp_path):
    with pytest.raises(LookupError, match="has no committed step 7"):
        read(urls[None], step=7)
    with pytest.raises(LookupError, match="has no committed step"):
        read(str(tmp_path))
    with pytest.raises(LookupError, match="have no committed step 7 both"):
        compare_runs(urls[None], urls["torch"], step=7)
    with pytest.raises(LookupError, match="rank=1"):
        read(urls[None], rank=1)


def test_only_the_manifest_of_the_step_and_rank_is_read(urls, tmp_path):
    """One that was copied over it is refused, and so is a file of a terabyte, most of it a hole."""
    copied = tmp_path / "run"
    until_pushers_end()  # they still write the event log of an ended session
    shutil.copytree(urls[None], copied)
    newest, before = (StepId(step, 1).prefix + "rank-00000-of-00001.json" for step in (12, 5))
    shutil.copy(copied / before, copied / newest)
    with pytest.raises(ManifestError, match="is the manifest of another step or rank"):
        read(str(copied))
    os.truncate(copied / newest, 2**40)
    with pytest.raises(ManifestError, match="has more than"):
        read(str(copied))


def test_runs_of_other_numbers_of_ranks_are_not_compared(urls, tmp_path):
    run_thread_ranks(2, lambda ranks: run(tmp_path, ranks=ranks))
    with pytest.raises(LookupError, match="saved by 1 ranks and 2 ranks"):
        compare_runs(urls[None], str(tmp_path / "run"))
