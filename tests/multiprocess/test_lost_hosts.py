"""A host that vanishes without a reset, and a way between two hosts that is lost in one direction."""

from __future__ import annotations

import pytest
from hearing import said, until
from hosts import Network, hosts_missing
from launching import exit_codes, launch

pytestmark = pytest.mark.skipif(hosts_missing() is not None, reason=str(hosts_missing()))

STOOD = "and this rank has made no progress for"


@pytest.fixture
def network():
    with Network() as network:
        yield network


@pytest.fixture
def ranks(tmp_path, network):
    """Three ranks on a host each, in the middle of collectives: the hosts, and the processes."""
    hosts = [network.host() for _ in range(3)]
    arguments = [(str(tmp_path), rank, 3, (hosts[0].address, 29400), "vanishes") for rank in range(3)]
    processes = [
        launch(
            "lost_ranks",
            arguments[rank],
            environment={"SPOT_DRILL_HOST": host.name, "GLOO_SOCKET_IFNAME": "eth0"},
            output=tmp_path / f"output-{rank}.txt",
        )
        for rank, host in enumerate(hosts)
    ]
    for rank in range(3):
        until((tmp_path / f"at-{rank}").exists, f"rank {rank} trains")
    yield hosts, processes
    for process in processes:
        process.kill()


def assert_told(folder, ranks, reason):
    """Check that one of *ranks* says why it ends, and each other one too unless that end has broken its collective."""
    texts = [said(folder / f"output-{rank}.txt") for rank in ranks]
    told = [reason in text and STOOD in text for text in texts]
    assert any(told), texts
    assert all(is_told or "Connection closed by peer" in text for is_told, text in zip(told, texts, strict=True)), texts


@pytest.mark.parametrize("lost", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_ranks_that_are_stuck_because_a_host_vanished_end(lost, ranks, network, tmp_path):
    """All three, the lost one too, which cannot know that it is the lost one."""
    hosts, processes = ranks
    network.unplug(hosts[lost])

    assert exit_codes(processes) == [1, 1, 1]
    assert_told(tmp_path, {0, 1, 2} - {lost}, f"rank {lost} cannot be reached any more")


def test_ranks_that_are_stuck_because_one_is_not_heard_end(ranks, network, tmp_path):
    """It hears the others, and so learns from rank 0 that it was given up."""
    hosts, processes = ranks
    network.lose_way(hosts[2], *hosts[:2])

    assert exit_codes(processes) == [1, 1, 1]
    assert_told(tmp_path, {0, 1}, "rank 2 cannot be reached any more (Connection timed out)")
