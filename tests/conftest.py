from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress

import hypothesis
import pytest
import torch
from servers import S3Server

# Every test has its timeout; that of hypothesis, 200 ms for an example, is about a machine with nothing else to do.
hypothesis.settings.register_profile("spot", deadline=None)
hypothesis.settings.load_profile("spot")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 service, shared by the whole run. Take a bucket of your own from it."""
    with S3Server() as server:
        yield server


@pytest.fixture(autouse=True)
def sigterm_as_before():
    """Let no test that leaves because of a notice take SIGTERM away from the tests behind it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) != before:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def workers_as_before(monkeypatch):
    """
    Let a training that has left because of a notice leave nothing of its loaders to the next one in this process.

    Such a training lets torch wait for no worker any more, because its process ends. Its iterators then never take
    back that they had workers, and an iterator at the same address would be refused.
    """
    handling = torch.utils.data._utils.signal_handling
    set_pids = handling._set_worker_pids

    def set_worker_pids(loader, pids):
        with suppress(ValueError):  # there are none at this address
            handling._remove_worker_pids(loader)
        set_pids(loader, pids)

    monkeypatch.setattr(handling, "_set_worker_pids", set_worker_pids)
    monkeypatch.setattr(torch.utils.data._utils, "python_exit_status", torch.utils.data._utils.python_exit_status)
