from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest
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
