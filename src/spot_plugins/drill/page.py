"""The result of a drill as one page of HTML, which loads nothing and runs no script."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ..clock import wall_time
from ..config import printable_url
from ..eventlog.reading import read_event_log
from ..monitor.figures import Prices, report_of
from ..monitor.html import document_html, list_html, table_html, text_html, timeline_html
from ..monitor.text import shown_at
from ..store import open_store
from .lives import Run
from .text import fault_table, result_of
from .verdict import Verdict


def page_of(verdict: Verdict) -> str:
    """Return the page. Every text is escaped."""
    facts, now = verdict.facts, wall_time()
    title = f"Drill of {shlex.join(facts.command)}"
    promises = [("", "PROMISE", "SEEN")]
    promises += [("kept" if each.is_kept else "BROKEN", each.name, each.text) for each in verdict.promises]
    body = [
        f"<h1>{text_html(title)}</h1>",
        f'<p class="faint">{text_html(shown_at(now))}, seed {facts.options.seed}</p>',
        f'<p><span class="big">{"kept" if verdict.is_kept else "broken"}</span></p>',
        f"<p>{text_html(result_of(verdict))}</p>",
        "<h2>Promises</h2>",
        table_html([*promises]),
        *(["<h2>Faults</h2>", table_html(fault_table(verdict.figures))] if verdict.figures else []),
        *(["<h2>What the training said</h2>", list_html(verdict.words, "ul")] if verdict.words else []),
        *_timelines("The rehearsal", facts.rehearsal, now),
        *_timelines("The control", facts.control, now),
    ]
    return document_html(title, body)


def _timelines(title: str, run: Run | None, now: float) -> Iterator[str]:
    """Yield a bar for each start of the command, if a session was opened."""
    log = None if run is None or not run.url else read_event_log(open_store(run.url))
    if log is None or run is None or not any(rank.records for rank in log.ranks):
        return
    yield f"<h2>{title}</h2>"
    yield from timeline_html(report_of(printable_url(run.url), log, Prices(), now))
