"""The rendezvous of torchrun: its address, and whether it is lost."""

from __future__ import annotations

import socket
import threading
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


def test_the_rendezvous_has_its_time_again_after_the_last_rank():
    """Nobody has asked it while ranks ran, which may have been for days."""
    watched = Rendezvous(("127.0.0.1", free_port()))
    watched._seen_at -= 100.0
    watched.is_lost(has_ranks=True)

    assert not watched.is_lost(has_ranks=False)


def test_the_rendezvous_may_be_silent_for_a_while():
    """Its machine may start again."""
    watched = Rendezvous(("127.0.0.1", free_port()))
    watched._seen_at -= rendezvous.LOST_S / 2

    assert not watched.is_lost(has_ranks=False)


def until_probed():
    until(lambda: "spot-probe" not in [thread.name for thread in threading.enumerate()], "nobody asks")


def test_the_rendezvous_is_asked_now_and_then(monkeypatch):
    """Not by each look, of which there are many in a second. Each connection is closed again."""
    monkeypatch.setattr(rendezvous, "PROBE_S", 600.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        watched = Rendezvous(listener.getsockname())
        for _ in range(20):
            watched.is_lost(has_ranks=False)
        until_probed()
        connection, _ = listener.accept()
        with closing(connection):
            assert connection.recv(1) == b""
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.fixture
def silent():
    """A host that answers nobody, because its queue is full."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as listener, closing(socket.socket()) as waits:
        waits.connect(listener.getsockname())
        yield listener.getsockname()


def test_a_look_does_not_wait_for_an_answer(silent, monkeypatch):
    """The thread that looks also passes signals on."""
    monkeypatch.setattr(rendezvous, "PROBE_S", 3.0)
    Rendezvous(silent).is_lost(has_ranks=False)

    assert "spot-probe" in [thread.name for thread in threading.enumerate()]
    until_probed()


def test_nobody_waits_long_for_an_answer(silent, soon):
    """Else a new thread would wait after each look."""
    Rendezvous(silent).is_lost(has_ranks=False)
    until_probed()
