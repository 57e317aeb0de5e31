"""The report as one page of HTML, which loads nothing and runs no script."""

from __future__ import annotations

from .advice import advice_of
from .figures import Report
from .html import document_html, list_html, table_html, text_html, timeline_html
from .text import attempt_table, headlines, phase_table, shown_at, time_table


def page_of(report: Report) -> str:
    """Return the page. Every text is escaped, because no log is trusted."""
    title = f"Report of {report.url}"
    first, *others = headlines(report)
    body = [
        f"<h1>{text_html(title)}</h1>",
        f'<p class="faint">{text_html(shown_at(report.made_at))}</p>',
        f'<p><span class="big">{report.goodput:.1%}</span> goodput</p>',
        *(f"<p>{text_html(line)}</p>" for line in (first, *others)),
        "<h2>What to change</h2>",
        list_html(advice_of(report) or ["Nothing: no loss is worth it."], "ol"),
        "<h2>Timeline</h2>",
        *timeline_html(report),
        "<h2>Where the time went</h2>",
        table_html(time_table(report)),
        "<h2>Attempts</h2>",
        table_html(attempt_table(report)),
        "<h2>Phases of saves and starts</h2>",
        table_html(phase_table(report)),
        *(["<h2>Limits of these figures</h2>", list_html(report.notes, "ul")] if report.notes else []),
    ]
    return document_html(title, body)
