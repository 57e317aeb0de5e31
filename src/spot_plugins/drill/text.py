"""The result of a drill as lines of text, as a JSON document, and as JUnit's XML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final
from xml.etree import ElementTree

from ..monitor.text import Table, printable
from .timings import FaultFigures
from .verdict import Verdict

JSON_VERSION: Final = 1


def text_of(verdict: Verdict) -> str:
    """Return the promises, the table of faults and the result as lines of text."""
    parts = [[f"{'kept  ' if each.is_kept else 'BROKEN'}  {each.name}: {each.text}" for each in verdict.promises]]
    if verdict.figures:
        parts.append(_columns(fault_table(verdict.figures)))
    if verdict.words:
        parts.append(["The training said:", *verdict.words])
    parts.append([result_of(verdict)])
    return "\n\n".join("\n".join(map(printable, lines)) for lines in parts)


def result_of(verdict: Verdict) -> str:
    """Return the result in one sentence."""
    if (broken := verdict.first_broken) is not None:
        return f"A promise was broken. {broken.name}: {broken.text}"
    return "All promises were kept."


def fault_table(figures: Sequence[FaultFigures]) -> Table:
    """Return one row for each fault."""
    head = ("FAULT", "STEP", "STORED", "RESUMED", "LOST", "CODE", "LEFT AFTER", "SAVE", "DURABLE", "LOAD", "NEW STEP")
    rows: Table = [head]
    for each in figures:
        numbers = (each.step, each.committed, each.resumed_from, each.lost_steps, each.exit_code)
        times = (each.left_s, each.save_s, each.durable_s, each.load_s, each.next_step_s)
        cells = ["-" if number is None else str(number) for number in numbers]
        cells += ["-" if time is None else f"{max(0.0, time):.2f} s" for time in times]
        rows.append((each.fault, *cells))
    return rows


def document_of(verdict: Verdict) -> dict[str, Any]:
    """Return the result as a JSON object."""
    facts, broken = verdict.facts, verdict.first_broken
    lives = [] if facts.rehearsal is None else facts.rehearsal.lives
    return {
        "version": JSON_VERSION,
        "command": list(facts.command),
        "seed": facts.options.seed,
        "is_kept": verdict.is_kept,
        "first_broken": None if broken is None else asdict(broken),
        "promises": [asdict(each) for each in verdict.promises],
        "faults": [asdict(each) | {"lost_steps": each.lost_steps} for each in verdict.figures],
        "starts": [
            {
                "number": each.number,
                "command": list(each.command),
                "took_s": each.gone_at - each.began_at,
                "exit_code": each.exit_code,
                "start_step": each.log.start_step,
                "reached_step": each.reached_step,
                "problems": each.problems,
            }
            for each in lives
        ],
        "words": list(verdict.words),
    }


def junit_of(verdict: Verdict) -> str:
    """Return one test case for each promise, in the format that CI services read."""
    failures = sum(not each.is_kept for each in verdict.promises)
    name = printable(f"spot drill -- {shlex.join(verdict.facts.command)}")
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(verdict.promises)), failures=str(failures))
    for each in verdict.promises:
        case = ElementTree.SubElement(suite, "testcase", classname="spot drill", name=printable(each.name))
        if each.is_kept:
            ElementTree.SubElement(case, "system-out").text = printable(each.text)
        else:
            ElementTree.SubElement(case, "failure", message=printable(each.text))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _columns(table: Table) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
