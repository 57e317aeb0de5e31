"""A machine that is stopped while the store is down, and comes back: what only its disk has is not lost."""

from __future__ import annotations

import json
import os
import signal
import uuid

import pytest
from hearing import is_zombie, said, until
from launching import exit_codes, launch_ranks, printed, train
from steps import assert_same, load_on_all, numbers, state_of

from spot_plugins.format.keys import StepId, merged_manifest_key
from spot_plugins.store import open_store
from spot_plugins.testing import FaultProxy


@pytest.fixture(scope="session")
def bucket(s3_server):
    return s3_server.create_bucket("salvage")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("outage", [FaultProxy.refuse, FaultProxy.hang], ids=["refuses", "hangs"])
def test_a_step_that_an_outage_kept_on_the_disks_is_resumed_from_and_stored(outage, ranks, s3_server, bucket, tmp_path):
    """
    Step 1 is committed, then the store is gone. Step 2 is on the disks when all trainers and pushers are killed. The
    next life finds the store well again: it commits step 2 and goes on behind it.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    store = open_store(url, s3_server.storage_options())
    with FaultProxy(s3_server.endpoint_url) as proxy:
        options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=10, read_timeout=10)
        config = {"url": url, "every_steps": 10**6, "storage_options": options}
        trainers = launch_ranks("outage_train", tmp_path, {"ranks": ranks, "goes_on": True, "config": config})

        wait_for("stored", trainers, tmp_path)
        pushers = [int((tmp_path / f"stored-{rank}").read_text()) for rank in range(ranks)]
        merged = merged_manifest_key(StepId(1, 1))
        until(lambda: ranks == 1 or list(store.keys(merged)), "rank 0's pusher has nothing more to do with step 1")
        outage(proxy)
        (tmp_path / "go").touch()
        wait_for("written", trainers, tmp_path)
        for pid in [*(trainer.pid for trainer in trainers), *pushers]:
            os.kill(pid, signal.SIGKILL)
        assert exit_codes(trainers) == [-signal.SIGKILL] * ranks
        until(lambda: all(map(is_zombie, pushers)), "the pushers have ended")
    assert numbers(store) == [1]

    config["storage_options"] = s3_server.storage_options()
    train("outage_train", tmp_path, {"ranks": ranks, "goes_on": False, "config": config}, expect=0)
    for rank in range(ranks):
        assert json.loads((tmp_path / f"resumed-{rank}").read_text()) == [2, [2]]
    assert numbers(store) == [2, 1]
    for rank, loaded in enumerate(load_on_all(store, ranks)):  # from the store alone
        assert loaded.step_id == (2, 1)
        assert_same(loaded.state["part"], state_of(2, rank))


def wait_for(name, trainers, folder):
    """Wait until each of *trainers* has written its file *name*, and all still run."""
    files = [folder / f"{name}-{rank}" for rank in range(len(trainers))]
    until(lambda: all(map(said, files)) or not all(each.is_alive() for each in trainers), f"all have {name}")
    assert all(each.is_alive() for each in trainers), printed(folder, len(trainers))
