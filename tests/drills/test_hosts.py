"""
A training on hosts that are network namespaces: hosts vanish without a reset, ways are lost, and hosts are back.

Nobody waits for the dead longer than docs/assumptions.md says, and each sample counts once.
"""

from __future__ import annotations

import time

import pytest
from agent_jobs import Job, Machine
from hosts import Network, hosts_missing

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(hosts_missing() is not None, reason=str(hosts_missing()))]


@pytest.fixture
def network():
    with Network() as network:
        yield network


@pytest.fixture
def job(tmp_path, network):
    job = Job(tmp_path, network=network)
    yield job
    for machine in job.machines:
        machine.end()


def test_link(job, network):
    hosts = {name: network.host() for name in "abc"}
    machines = {name: Machine(job, name, host) for name, host in hosts.items()}
    job.until_steps(3)
    at = time.monotonic()
    print("unplug", time.time())
    network.unplug(hosts["c"])
    try:
        again = job.until_steps(2, after=at)
        print("AGAIN", again - at)
    finally:
        print(job.printed(20000))
