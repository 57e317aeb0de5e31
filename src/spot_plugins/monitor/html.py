"""Parts of a page that loads nothing and runs no script: its frame, lists, tables, and a timeline of attempts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from .advice import shown_s
from .attempts import CATEGORIES, Attempt
from .figures import Report
from .text import Table, end_of, printable, shown_at

MOST_BARS: Final = 200
"""Most attempts in the timeline. Of more, the newest are shown."""

MOST_MARKS: Final = 300
"""Most saves of one attempt in the timeline."""

LONG: Final = 34
"""Characters that a cell of a table has in one line at most."""

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --line: #d0d7de; --faint: #57606a;
  --productive: #2da44e; --wasted: #cf222e; --startup: #8250df; --prep: #6e7781; --restore: #0969da;
  --save: #bf8700; --leave: #bc4c00; --mark: #1b1f24; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --line: #30363d; --faint: #9198a1;
  --productive: #3fb950; --wasted: #f85149; --startup: #ab7df8; --prep: #9198a1; --restore: #4493f8;
  --save: #d29922; --leave: #db6d28; --mark: #e6edf3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.big { font-size: 2.5rem; font-weight: 600; }
.faint { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th, .long { white-space: normal; } th { vertical-align: bottom; } .long { min-width: 12rem; }
.bar { display: grid; grid-template-columns: 3rem 1fr; align-items: center; gap: .5rem; margin: .15rem 0; }
svg { display: block; width: 100%; height: 1.1rem; background: color-mix(in srgb, var(--line) 40%, transparent); }
.key span { display: inline-block; margin-right: 1rem; } .key i { display: inline-block; width: .8rem; height: .8rem;
  margin-right: .3rem; vertical-align: -.05rem; }
@media print { body { max-width: none; padding: 0; } h2, tr, .bar { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: .7rem; } td { white-space: normal; } }
"""


def document_html(title: str, body: Iterable[str]) -> str:
    """Return a whole page. *body* is HTML already."""
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>""",
            f"<title>{text_html(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        )
    )


def text_html(text: str) -> str:
    """Return *text* with everything escaped that HTML or a terminal would act on."""
    return escape(printable(text))


def list_html(lines: Iterable[str], tag: str) -> str:
    """Return a list. *tag* is ``ol`` or ``ul``."""
    return f"<{tag}>{''.join(f'<li>{text_html(line)}</li>' for line in lines)}</{tag}>"


def table_html(table: Table) -> str:
    """Return a table that scrolls if it is too wide."""
    first, *rows = table
    head = "".join(f"<th>{text_html(cell)}</th>" for cell in first)
    lines = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell_html(text: str) -> str:
    """Return a cell, which has several lines if the text is a longer one, such as the source of a notice."""
    kind = ' class="long"' if len(text) > LONG else ""
    return f"<td{kind}>{text_html(text)}</td>"


def timeline_html(report: Report) -> list[str]:
    """Return a key, and one bar for each attempt. All bars have one axis of time."""
    attempts = report.attempts[-MOST_BARS:]
    begin = min(each.began_at for each in attempts)
    length_s = max(max(each.ended_at for each in attempts) - begin, 1e-9)
    key = "".join(
        f'<span><i style="background:var(--{name})"></i>{text_html(words)}</span>' for name, words in CATEGORIES.items()
    )
    lines = [
        f'<p class="key">{key}<span>| a save</span><span>▼ a notice</span></p>',
        f'<p class="faint">{text_html(shown_at(begin))}, {text_html(shown_s(length_s))} in all</p>',
    ]
    if len(attempts) < len(report.attempts):
        lines.append(f'<p class="faint">The newest {len(attempts)} of {len(report.attempts)} attempts.</p>')
    return [*lines, *(_bar(each, begin, length_s) for each in attempts)]


def _bar(attempt: Attempt, begin: float, length_s: float) -> str:
    """Return one attempt, with a title that a pointer shows. 1000 units are the whole timeline."""

    def x(at: float) -> float:
        return 1000 * min(max((at - begin) / length_s, 0.0), 1.0)

    position = attempt.began_at
    parts = []
    # In the order in which they come, but for stalls, which are spread over the training.
    for name in ("startup", "restore", "prep", "productive", "wasted", "save", "leave"):
        seconds = attempt.seconds[name]
        if seconds > 0:
            width = max(x(position + seconds) - x(position), 0.5)
            title = text_html(f"{CATEGORIES[name]}: {shown_s(seconds)}")
            parts.append(
                f'<rect x="{x(position):.2f}" y="0" width="{width:.2f}" height="20" style="fill:var(--{name})">'
                f"<title>{title}</title></rect>"
            )
            position += seconds
    for at, step in attempt.saves[-MOST_MARKS:]:
        parts.append(
            f'<rect x="{x(at):.2f}" y="12" width="1" height="8" style="fill:var(--mark)">'
            f"<title>{text_html(f'step {step} is stored')}</title></rect>"
        )
    for at, source in attempt.notices[:10]:
        left = x(at)
        parts.append(
            f'<path d="M{left - 4:.2f} 0h8l-4 9z" style="fill:var(--mark)"><title>{text_html(source)}</title></path>'
        )
    title = text_html(f"attempt {attempt.number}: {end_of(attempt)}, {shown_s(attempt.paid_s)}")
    return (
        f'<div class="bar"><span>{attempt.number}</span><svg viewBox="0 0 1000 20" preserveAspectRatio="none" '
        f'role="img"><title>{title}</title>{"".join(parts)}</svg></div>'
    )
