"""The rendezvous of torchrun: its address, and whether it is lost."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from hearing import until
from ports import free_port

from spot_plugins.launch import rendezvous
from spot_plugins.launch.rendezvous import Rendezvous, endpoint_of

ENDPOINTS = {
    "torchrun --rdzv-endpoint steady-host:29400 train.py": ("steady-host", 29400),
    "torchrun --rdzv_endpoint=10.0.0.7:1234 train.py": ("10.0.0.7", 1234),
    "torchrun --rdzv-endpoint [fd00::7]:1234 train.py": ("fd00::7", 1234),
    "torchrun --rdzv-endpoint steady-host train.py": ("steady-host", 29400),
    "torchrun --rdzv-endpoint localhost:0 train.py": None,  # torchrun chooses a port
    "torchrun --rdzv-endpoint": None,
    "torchrun --standalone train.py": None,
    "python train.py": None,
}


@pytest.mark.parametrize("command", ENDPOINTS)
def test_the_endpoint_is_that_of_the_command(command):
    assert endpoint_of(command.split(), {}) == ENDPOINTS[command]


def test_the_endpoint_may_be_in_the_environment():
    environ = {"PET_RDZV_ENDPOINT": "steady-host:7"}

    assert endpoint_of(["torchrun", "train.py"], environ) == ("steady-host", 7)
    assert endpoint_of(["torchrun", "--rdzv-endpoint", "other:8", "train.py"], environ) == ("other", 8)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(rendezvous, "LOST_S", 0.5)
    monkeypatch.setattr(rendezvous, "PROBE_S", 0.1)


def test_a_rendezvous_that_does_not_answer_is_lost(soon):
    watched = Rendezvous(("127.0.0.1", free_port()))

    until(lambda: watched.is_lost(has_ranks=False), "it is lost")


def test_a_rendezvous_that_answers_is_not_lost(monkeypatch):
    """Each answer counts as much as a rank that runs."""
    monkeypatch.setattr(rendezvous, "PROBE_S", 0.01)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        watched = Rendezvous(listener.getsockname())
        before = watched._seen_at
        until(lambda: watched.is_lost(has_ranks=False) or watched._seen_at > before, "it has answered")

    assert not watched.is_lost(has_ranks=False)


@pytest.mark.parametrize(("endpoint", "has_ranks"), [(None, False), (("127.0.0.1", 1), True)])
def test_nothing_is_lost_without_an_endpoint_or_while_ranks_run(endpoint, has_ranks, soon):
    watched = Rendezvous(endpoint)
    watched._seen_at -= 100.0

    assert not watched.is_lost(has_ranks=has_ranks)
