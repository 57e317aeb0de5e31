"""
A training under torchrun on hosts that are network namespaces: each host is lost in every way, and comes back.

Nobody waits for the dead longer than docs/assumptions.md says, the other hosts train on, and each sample counts once.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from agent_jobs import START_S, Job, Machine
from hosts import Network, hosts_missing
from servers import S3Server

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(hosts_missing() is not None, reason=str(hosts_missing()))]


@pytest.fixture
def network():
    with Network() as network:
        yield network


@pytest.fixture
def new_job(tmp_path, network):
    """Make a job, whose machines are ended after the test."""
    jobs = []

    def make(**options):
        jobs.append(Job(tmp_path, network=network, **options))
        return jobs[-1]

    yield make
    for job in jobs:
        for machine in job.machines:
            machine.end()


def notice(machine, network):
    """Let the agent get a SIGTERM, and all ranks save one step."""
    machine.process.terminate()
    assert machine.process.wait(timeout=START_S) == 143, machine.job.printed()


def kill(machine, network):
    """End all processes of the host at once. Its kernel closes their connections."""
    machine.lose()


def vanish(machine, network):
    """Let the host go without a word."""
    network.unplug(machine.host)


def is_not_heard(machine, network):
    """Let nothing that the host sends arrive, but all that it is sent."""
    others = {other.host for other in machine.job.machines} - {machine.host}
    network.lose_way(machine.host, network.steady, *others)


def back(machine, network):
    """Let a new machine start on the host."""
    machine.end()
    network.restore(machine.host)
    return Machine(machine.job, machine.name, machine.host)


LOSSES = [
    pytest.param(notice, False, id="its agent gets a notice"),
    pytest.param(kill, True, id="its processes are killed"),
    pytest.param(vanish, True, id="its link is down"),
    pytest.param(is_not_heard, True, id="it is not heard"),
]


@pytest.mark.soak
@pytest.mark.parametrize("rank", [pytest.param(2, id="a host"), pytest.param(0, id="the host of rank 0")])
@pytest.mark.parametrize(("lose", "costs"), LOSSES)
def test_a_job_shrinks_when_a_host_is_lost_and_grows_when_it_is_back(lose, costs, rank, new_job, network):
    """3 ranks, 2, 3 again. Only a host that is lost without a notice costs steps, those since the newest stored one."""
    job = new_job()
    machines = [Machine(job, name, network.host()) for name in "abc"]
    job.until_steps(3)
    (lost,) = (machine for machine in machines if machine.rank[0] == rank)
    at = time.monotonic()
    lose(lost, network)
    shrunk = job.until_steps(2, after=at)
    grows_at = time.monotonic()
    back(lost, network)
    grown = job.until_steps(3, after=grows_at)
    repeated = job.end()

    print(f"MEASURED {lose.__name__} rank {rank}: {shrunk - at:.1f} s to shrink, {grown - grows_at:.1f} s to grow")
    assert len(repeated) <= costs, repeated


@pytest.mark.soak
@pytest.mark.parametrize(("cut_s", "costs"), [pytest.param(20, False, id="20 s"), pytest.param(50, True, id="50 s")])
@pytest.mark.parametrize("rank", [pytest.param(2, id="a host"), pytest.param(0, id="the host of rank 0")])
def test_a_job_continues_when_a_host_that_was_cut_off_is_back(rank, cut_s, costs, new_job, network):
    """
    Its agent lives. For less than the patience of the board the job stands still. After a longer time the ranks of all
    hosts end with words, and the same agents start them again.
    """
    job = new_job()
    machines = [Machine(job, name, network.host()) for name in "abc"]
    job.until_steps(3)
    (away,) = (machine for machine in machines if machine.rank[0] == rank)
    network.unplug(away.host)
    time.sleep(cut_s)
    network.restore(away.host)
    at = time.monotonic()
    trains_at = job.until_steps(3, after=at)
    print(f"MEASURED {cut_s} s without rank {rank}: {trains_at - at:.1f} s to train on 3 ranks")
    assert [machine.process.poll() for machine in machines] == [None] * 3
    repeated = job.end()

    assert {attempt for attempt, _ in job.lines("resumed")} == ({1, 2} if costs else {1})
    assert len(repeated) <= costs, repeated
    assert ("cannot be reached any more" in job.printed(100_000)) is costs


ENDS = [
    pytest.param(kill, 1, "RendezvousConnectionError", id="its processes are killed"),
    pytest.param(vanish, 137, "no rank runs, and nobody has answered at the rendezvous", id="its link is down"),
]


@pytest.mark.soak
@pytest.mark.parametrize(("lose", "code", "words"), ENDS)
def test_a_job_ends_when_the_host_of_its_rendezvous_is_lost(lose, code, words, new_job, network):
    """The agents cannot agree any more. They say so and end, and the job continues at another rendezvous."""
    hosts = [network.host() for _ in "abc"]
    job = new_job(rendezvous=hosts[0])
    lost, *others = [Machine(job, name, host) for name, host in zip("abc", hosts, strict=True)]
    job.until_steps(3)
    at = time.monotonic()
    lose(lost, network)
    for machine in others:
        assert machine.process.wait(timeout=START_S) == code, job.printed()
        machine.remains.assert_nothing(START_S)
    print(f"MEASURED {lose.__name__} of the rendezvous: {time.monotonic() - at:.1f} s to the end")
    assert words in job.printed(50_000)
    lost.end()

    job = new_job()
    for machine in others:
        Machine(job, machine.name, machine.host)
    job.until_steps(2, after=time.monotonic())
    assert len(job.end()) <= 1


@pytest.fixture
def s3(network):
    """A store on a host of its own, and the settings of a training with it."""
    host = network.host()
    with ExitStack() as stack:
        with host.entered():
            server = stack.enter_context(S3Server(host=host.address))
            url = f"{server.create_bucket('hosts')}/run"
        yield host, {"url": url, "config": {"storage_options": server.storage_options()}}


@pytest.mark.soak
def test_a_job_trains_on_while_one_host_cannot_reach_the_store(new_job, network, s3):
    """Nothing is committed meanwhile, and no rank is lost. It is committed when the way is back."""
    store, settings = s3
    job = new_job(**settings)
    away = [Machine(job, name, network.host()) for name in "abc"][2]
    job.until_steps(3)
    network.lose_way(away.host, store)
    job.until_steps(3, after=time.monotonic(), steps=10)
    network.restore(away.host)
    job.until_steps(3, after=time.monotonic())

    assert job.end() == {}


@pytest.mark.soak
def test_a_host_that_cannot_reach_the_store_leaves_within_its_grace(new_job, network, s3):
    """After a notice. Its share of the last step is not stored, so the others continue from an earlier step."""
    store, settings = s3
    job = new_job(**settings)
    away = [Machine(job, name, network.host()) for name in "abc"][2]
    job.until_steps(3)
    network.lose_way(away.host, store)
    job.until_steps(3, after=time.monotonic())
    at = time.monotonic()
    notice(away, network)
    print(f"MEASURED notice without a store: {time.monotonic() - at:.1f} s to the end")
    assert "is NOT stored yet" in job.printed(50_000)
    job.until_steps(2, after=at)
    at = time.monotonic()
    back(away, network)
    job.until_steps(3, after=at)

    assert len(job.end()) <= 1


def test_a_host_is_lost(new_job, network):
    """2 ranks, and 1."""
    job = new_job(machines="1:2", samples=200)
    machines = [Machine(job, name, network.host()) for name in "ab"]
    job.until_steps(2)
    at = time.monotonic()
    kill(machines[0], network)
    shrunk = job.until_steps(1, after=at)
    job.end()
    print(f"MEASURED small: {shrunk - at:.1f} s to shrink")
