from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from zlib import crc32

import hypothesis
import pytest
import torch
from clouds import AzureServer, GoogleServer
from servers import S3Server

from spot_plugins.data import internals, workers

# Programs that a test starts import from this folder, whichever test has come first.
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(Path(__file__).parent) not in _PATHS:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), *_PATHS]))

# Every test has its timeout; that of hypothesis, 200 ms for an example, is about a machine with nothing else to do.
hypothesis.settings.register_profile("spot", deadline=None)
hypothesis.settings.load_profile("spot")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Leave one case of each sampled test and a twelfth of the others, always the same ones. Mark the rest soak."""
    for (_, name), group in groupby(items, key=lambda item: (item.path, item.originalname)):
        cases = [item for item in group if item.get_closest_marker("soak") is None]
        if cases and cases[0].get_closest_marker("sampled"):
            always = cases[crc32(name.encode()) % len(cases)]
            for item in cases:
                if item is not always and crc32(item.name.encode()) % 12:
                    item.add_marker(pytest.mark.soak)


def pytest_collection_finish() -> None:
    """
    Let the garbage collector leave alone what the imports have made.

    There are a million objects of torch and of the hosts. A collection that looks at them all takes 0.4 s, and some
    tests ask for twenty.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 service, shared by the whole run. Take a bucket of your own from it."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def gs_server() -> Iterator[GoogleServer]:
    """A server that speaks the protocol of Google Cloud Storage, shared by the whole run."""
    with GoogleServer() as server:
        yield server


@pytest.fixture(scope="session")
def az_server() -> Iterator[AzureServer]:
    """A server that speaks the protocol of Azure Blob Storage, shared by the whole run."""
    with AzureServer() as server:
        yield server


@pytest.fixture(autouse=True)
def signals_as_before():
    """Let no test that leaves because of a notice, and then ignores all signals, take them away from the next tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_accelerator():
    """Let each test begin without the state that all accelerators of a process share."""
    if (module := sys.modules.get("accelerate.state")) is not None:
        for state in (module.AcceleratorState, module.GradientState, module.PartialState):
            state._reset_state()


_LOADERS = set()
"""The loaders of this process that have workers. One of an earlier test may be there, and those who leave kill all."""


def _remove_worker_pids(loader, remove=torch.utils.data._utils.signal_handling._remove_worker_pids):
    """Let torch forget the workers of *loader*, if it has not."""
    with suppress(ValueError):
        remove(loader)


@pytest.fixture(autouse=True)
def workers_as_before(monkeypatch):
    """
    Let a training that has left because of a notice leave nothing of its loaders to the next one in this process.

    Such a training kills its workers, and lets torch wait for none and look at none any more, because its process ends.
    So torch has to forget here whose workers they were, and to look at those of the next training again.
    """
    utils = torch.utils.data._utils
    handling = utils.signal_handling
    set_pids, exit_status, look = (
        handling._set_worker_pids,
        utils.python_exit_status,
        handling._error_if_any_worker_fails,
    )
    handling._remove_worker_pids = _remove_worker_pids  # for good: an iterator may be deleted after its test

    def as_before():
        utils.python_exit_status = exit_status
        handling._error_if_any_worker_fails = look

    def set_worker_pids(loader, pids):
        as_before()
        _LOADERS.add(loader)
        set_pids(loader, pids)

    def forget_workers():
        internals.forget_workers()
        while _LOADERS:
            _remove_worker_pids(_LOADERS.pop())

    monkeypatch.setattr(handling, "_set_worker_pids", set_worker_pids)
    monkeypatch.setattr(workers, "forget_workers", forget_workers)
    yield
    as_before()
