"""A step with prepared manifests, as every command sees it: they are no manifests, and no blobs that nobody names."""

from __future__ import annotations

from contextlib import closing

import pytest
from last_saves import LOST, STEP_ID, WORLD, Rank
from steps import load, numbers

from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import merge_manifests
from spot_plugins.format.keys import prepared_manifest_key, rank_manifest_key
from spot_plugins.store import LocalStore
from spot_plugins.upkeep.copy import copy_run
from spot_plugins.upkeep.listing import list_run
from spot_plugins.upkeep.prune import plan_prune
from spot_plugins.upkeep.verify import verify


@pytest.fixture
def url(tmp_path):
    store = LocalStore(str(tmp_path / "run"))
    store.put("run.json", b'{"format":1}')
    claim_attempt(store, b'{"host":"a"}')
    for rank in range(WORLD):
        with closing(Rank(rank, store)) as saving:
            saving.save_last()
    assert merge_manifests(store, STEP_ID, WORLD)
    return str(tmp_path / "run")


def test_commands_see_the_committed_step_as_any_other(url, tmp_path):
    """It is listed, verified, loaded and copied. A copy has no prepared manifests, because all is stored."""
    (listed,) = list_run(url).steps
    assert (listed.is_committed, listed.num_ranks, listed.world_size, listed.defect) == (True, WORLD, WORLD, None)
    assert verify(url).is_good
    assert load(LocalStore(url)).step_id == STEP_ID
    copy_run(url, str(tmp_path / "copy"))
    copied = set(LocalStore(str(tmp_path / "copy")).keys(STEP_ID.prefix))
    assert copied >= {rank_manifest_key(STEP_ID, rank, WORLD) for rank in range(WORLD)}
    assert not {key for key in copied if "prepared" in key}
    _, plan = plan_prune(url, keep_last=1)
    assert (plan.steps, plan.orphans) == ((), ())


def test_a_step_that_is_prepared_alone_is_incomplete(url):
    """The prepared manifest of the lost rank counts as no share."""
    store = LocalStore(url)
    store.delete(rank_manifest_key(STEP_ID, LOST, WORLD))
    assert prepared_manifest_key(STEP_ID, LOST, WORLD) in store.keys(STEP_ID.prefix)
    (listed,) = list_run(url).steps
    assert (listed.is_committed, listed.missing_ranks) == (False, (LOST,))
    assert numbers(store) == []
