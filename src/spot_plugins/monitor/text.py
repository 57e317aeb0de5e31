"""The report as text for a terminal, and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Final

from .advice import advice_of, shown_s
from .attempts import CATEGORIES, Attempt
from .figures import Report

JSON_VERSION: Final = 1

GOOGLE: Final = {
    "productive": "PRODUCTIVE",
    "wasted": "WASTED_PROGRESS_FROM_DISRUPTION",
    "startup": "PROGRAM_STARTUP",
    "prep": "TRAINING_PREP",
    "restore": "UNPRODUCTIVE_CHECKPOINT_RESTORE",
    "save": "UNPRODUCTIVE_CHECKPOINT_SAVE",
    "leave": "UNPRODUCTIVE_CHECKPOINT_SAVE",
    "waiting": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
}
"""Names of the categories in Google's taxonomy of goodput."""

Table = list[tuple[str, ...]]


def document_of(report: Report) -> dict[str, Any]:
    """Return the report as a JSON object. Times are seconds since 1970."""
    rate, low, high = report.per_day
    return {
        "version": JSON_VERSION,
        "url": report.url,
        "made_at": report.made_at,
        "goodput": report.goodput,
        "paid_s": report.paid_s,
        "seconds": report.seconds | {"waiting": report.waiting_s},
        "taxonomy": GOOGLE,
        "kept_steps": report.kept_steps,
        "lost_steps": report.lost_steps,
        "interruptions": {
            "count": report.num_interruptions,
            "per_day": rate,
            "low": low,
            "high": high,
            "published_per_day": report.published_per_day,
        },
        "attempts": [asdict(each) | {"paid_s": each.paid_s} for each in report.attempts],
        "phases": [asdict(each) for each in report.phases],
        "money": None if report.money is None else asdict(report.money),
        "advice": list(advice_of(report)),
        "notes": list(report.notes),
    }


def text_of(report: Report) -> str:
    """Return the report as lines of text. What is not printable is replaced, because no log is trusted."""
    parts = [
        [f"{report.url}, {shown_at(report.made_at)}", *headlines(report)],
        ["Where the time went", *_columns(time_table(report))],
        ["Attempts", *_columns(attempt_table(report))],
        ["Phases", *_columns(phase_table(report))],
        ["What to change", *(advice_of(report) or ["Nothing: no loss is worth it."])],
        ["Limits of these figures", *report.notes] if report.notes else [],
    ]
    return "\n\n".join("\n".join(map(printable, lines)) for lines in parts if lines)


def headlines(report: Report) -> list[str]:
    """Return the main figures, one sentence each."""
    rate, low, high = report.per_day
    lines = [
        f"Goodput {report.goodput:.1%}: {shown_s(report.seconds['productive'])} of {shown_s(report.paid_s)} became "
        f"{report.kept_steps} steps that were kept.",
        f"{_count(report.num_interruptions, 'interruption')}, {rate:.2f} per day of training "
        f"(95 % interval {low:.2f} to {high:.2f}).",
        *_published(report),
        f"{_count(report.lost_steps, 'step')} lost{_per_interruption(report)}.",
    ]
    if (money := report.money) is not None:
        parts = [f"{money.gpu_hours:.2f} GPU hours"]
        parts += [] if money.spent is None else [f"{money.spent:.2f} spent", f"{money.lost:.2f} of it lost"]
        parts += [] if money.saved is None else [f"{money.saved:.2f} saved against on-demand machines without any loss"]
        lines.append(f"{', '.join(parts)}.")
    return lines


def time_table(report: Report) -> Table:
    """Return the seconds of each category, with the name that Google has for it."""
    rows: Table = [("CATEGORY", "TIME", "SHARE", "GOOGLE'S NAME")]
    for name, words in CATEGORIES.items():
        lost_s = report.seconds[name]
        share = f"{lost_s / report.paid_s:.1%}" if report.paid_s else "-"
        rows.append((words, shown_s(lost_s), share, GOOGLE[name]))
    rows.append(("between attempts, not in the sum", shown_s(report.waiting_s), "-", GOOGLE["waiting"]))
    return rows


def attempt_table(report: Report) -> Table:
    """Return one row for each attempt, with what its end has cost."""
    rows: Table = [
        (
            "ATTEMPT",
            "BEGAN",
            "RANKS",
            "TIME",
            "STEPS",
            "STORED",
            "END",
            "LOST STEPS",
            "LOST TIME",
            "UNTIL TRAINING AGAIN",
        )
    ]
    for index, each in enumerate(report.attempts):
        start = "-" if each.start_step is None else f"{each.start_step}-{each.reached_step}"
        stored = "-" if each.committed_step is None else str(each.committed_step)
        rows.append(
            (
                *(str(each.number), shown_at(each.began_at), str(each.world_size), shown_s(each.paid_s), start, stored),
                *(end_of(each), str(each.lost_steps), shown_s(each.seconds["wasted"]), _downtime(report, index)),
            )
        )
    return rows


def phase_table(report: Report) -> Table:
    """Return the durations of the phases of saves and starts."""
    rows: Table = [("PHASE", "TIMES", "MEDIAN", "LONGEST")]
    rows += [(each.name, str(each.count), shown_s(each.median_s), shown_s(each.longest_s)) for each in report.phases]
    return rows


def end_of(attempt: Attempt) -> str:
    """Return how an attempt ended, for people."""
    text = f"{attempt.how} ({attempt.error})" if attempt.error else attempt.how
    return f"{text} after {attempt.notices[0][1]}" if attempt.notices and attempt.is_interrupted else text


def shown_at(seconds: float) -> str:
    """Return a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def printable(text: str) -> str:
    """Return *text* without what could control a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _downtime(report: Report, index: int) -> str:
    """Return the time from the end of an attempt until training began again."""
    again = next((each.trained_from for each in report.attempts[index + 1 :] if each.trained_from is not None), None)
    return "-" if again is None else shown_s(max(0.0, again - report.attempts[index].ended_at))


def _published(report: Report) -> list[str]:
    """Return a sentence that compares the provider's figure with the counted one, if it is known."""
    if (published := report.published_per_day) is None:
        return []
    _, low, high = report.per_day
    place = "below" if published < low else "above" if published > high else "within"
    return [f"By the provider's figure it would be {published:.2g} per day, which is {place} that interval."]


def _per_interruption(report: Report) -> str:
    interrupted = [each for each in report.attempts if each.is_interrupted]
    if not interrupted:
        return ""
    steps = sum(each.lost_steps for each in interrupted) / len(interrupted)
    lost_s = sum(each.seconds["wasted"] for each in interrupted) / len(interrupted)
    return f", {steps:.1f} steps and {shown_s(lost_s)} per interruption"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _columns(table: Table) -> Iterable[str]:
    table = [tuple(map(printable, row)) for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
