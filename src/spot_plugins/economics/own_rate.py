"""The recent preemptions of a run, from the attempts in its store."""

from __future__ import annotations

from ..clock import SystemClock
from ..schedule import Preemptions, preemptions_until_now
from ..store import open_store, patiently


def run_preemptions(url: str) -> Preemptions:
    """
    Count the recent preemptions of the run at *url*, after its newest attempt has ended.

    Every end of an attempt counts as a preemption of the job, and the time until now counts. Of many attempts only the
    last ones count, as for ``every_seconds="auto"``. Nothing is counted if no attempt has begun.

    Raises:
        ConfigError: *url* cannot work.
        StoreError: The store does not answer.
    """
    store = open_store(url)
    return patiently(lambda: preemptions_until_now(store, SystemClock()))
