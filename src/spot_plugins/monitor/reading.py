"""The report of the run at a URL."""

from __future__ import annotations

from ..config import printable_url
from ..errors import ConfigError
from ..eventlog.reading import EventLog, read_event_log
from ..locations import is_local
from ..store import open_store
from .figures import Prices, Report, report_of


def read_report(url: str, prices: Prices, now: float, monthly_share: float | None = None) -> Report:
    """
    Read the event log of the run at *url*, and return its report.

    Args:
        url: The URL of the run.
        prices: What a GPU costs, as far as it is known.
        now: The present time, in seconds since 1970.
        monthly_share: As for :func:`.figures.report_of`.

    Raises:
        ConfigError: *url* cannot work, or nothing is there.
        StoreError: The store does not answer.
    """
    log = read_event_log(open_store(url))
    check_log(url, log)
    return report_of(printable_url(url), log, prices, now, monthly_share)


def check_log(url: str, log: EventLog) -> None:
    """Raise :exc:`ConfigError` if *log*, that of the run at *url*, has no records."""
    if any(rank.records for rank in log.ranks):
        return
    if log.newest_attempt:
        raise ConfigError(
            f"this run has no event log, though it has had {log.newest_attempt} attempts: a version before 0.2 has "
            f"trained it, or the store refuses what is below events/. Train on with this version, and ask again"
        )
    kind = "directory" if is_local(url) else "URL"
    raise ConfigError(f"no attempt of a run is at this {kind}. Give the URL with which it is trained")
