"""
docs/operating.md has a row for each message that a user can meet, and a test provokes each.

A message is a text of four words or more in the sources that no list below exempts. Messages that are made of parts are
several texts. A row or a test has a message if it has words in a row that no other message has, or its longest part. So
these tests find messages without a row or a test, and do not prove that the row is right or that the test provokes the
message.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "src/spot_plugins"
HOLE: Final = "\0"
"""The place of a variable part in a text. Rows write it as three dots."""
DOTS: Final = re.compile(rf"{HOLE}|\.\.\.")

NOT_SHOWN: Final = {
    **dict.fromkeys(["debug", "info", "exception"], "detail for those who ask for it, and bugs of this package"),
    **dict.fromkeys(["say_first", "rank_zero_info", "_say", "tell_finished"], "lines of a training that goes well"),
    **dict.fromkeys(["described", "Kind", "Option", "Argument"], "help of settings and commands"),
    **dict.fromkeys(["AttributeError", "KeyError", "RuntimeError", "TypeError"], "a call that is wrong as code"),
    **dict.fromkeys(["cast", "compile", "filterwarnings"], "not for people"),
}
"""Calls whose texts are no messages of something that is wrong, with the reason."""

NOT_MET: Final = {
    "accelerate/internals.py": "a text of Accelerate",
    "agreement/messages.py": "what ranks of one version never send each other",
    "economics/goodput.py": "a call that is wrong as code",
    "economics/grace.py": "the same",
    "economics/intervals.py": "the same",
    "economics/money.py": "the same",
    "economics/rates.py": "the same",
    "economics/simulation.py": "the same",
    "economics/decision.py": "an answer of spot plan",
    "drill/verdict.py": "an answer of spot drill",
    "drill/equality.py": "the same",
    "drill/text.py": "the same",
    "drill/page.py": "the same",
    "drill/promise.py": "the same",
    "drill/survival.py": "the same",
    "the disk of the store and the local copies ": "an act of spot drill",
    "economics/page.py": "the same",
    "economics/picture.py": "the same",
    "assumed": "the basis of a figure of spot plan",
    "estimated: ": "the same",
    "given: ": "the same",
    "measured: ": "the same",
    "the run's own: ": "the same",
    "start_s, end_s and end_reason": "the columns within the message on a trace",
    "7B, 350M or 7e9": "examples within another message",
    "80GB, 75GiB or 80e9": "the same",
    "economics/walltime.py": "the same",
    "schedule/daly.py": "a call that is wrong as code",
    "eventlog/records.py": "a damaged line of an event log, which a report counts",
    "eventlog/reading.py": "the same",
    **dict.fromkeys(
        [f"monitor/{name}.py" for name in ("advice", "attempts", "figures", "html", "page", "text")], "a report"
    ),
    **dict.fromkeys([f"doctor/{name}.py" for name in ("here", "launch_test", "notices", "places")], "a finding"),
    "monitor/instruments.py": "help of metrics",
    "market/textfile.py": "the same",
    "guard/host.py": "remedies, which the table of what is not saved has for each host",
    "accelerate/guarded.py": "the same",
    "bare/guarded.py": "the same",
    "lightning/guarded.py": "the same",
    "transformers/guarded.py": "the same",
    "has left because of a notice": "the reason of a rank that leaves as well, and says that nothing was saved",
    "leave/phase.py": "a call in the wrong order, which is an error in the program",
    "notices/azure.py": "logged for those who ask for it: a service is asked again",
    "notices/gcp.py": "the same",
    "notices/web.py": "the same",
    "the manifests of ": "the pusher stores no merged manifest then, and readers do without",
    "state/decoder.py": "the end of the rows for a state that is damaged or does not fit",
    "state/leaves.py": "the same",
    "state/rng.py": "the same",
    "data/rng.py": "the same",
    "store/object_names.py": "a key that only this package gives",
    "store/obstore.py": "the name of an option that obstore lacks, so fsspec is used",
    "on_save_checkpoint() of the module": "the end of the row for a state that cannot be saved",
    "state_dict() of the": "the same",
    "not an order of": "the end of the rows for a state that is damaged",
    "it may work later": "the end of each StoreError",
    "trying again will not help": "the same",
    "step \0 is damaged: \0": "the frame of each CorruptCheckpointError, whose reasons have rows",
    "nothing to resume from at": "the frame of the row on damaged steps",
    "Train on machines that": "help",
    "Linux must be": "the end of the row for an answer of a provider that is not as documented",
    "spot_advisor must be": "the same",
    "label=": "the same",
    "currencyCode": "the same",
    "usageUnit=": "the same",
    "serviceName eq": "a question to Azure",
    "RTX PRO": "a name of Vast.ai",
    "$\0 per GPU": "what spot prices was asked for",
    "SkyPilot tries them": "within the file of --emit",
    "dstack takes the cheapest": "the same",
    "# The cheapest": "the same",
    "  job_recovery: ": "the same",
    "max_price: ": "the same",
    "retry: ": "the same",
    "import sys": "a program",
    "Wanted range starting at": "a text of obstore",
    "Received redirect without LOCATION": "a text of obstore",
    "user in the URL": "the name of an option that obstore lacks, so fsspec is used",
    "s3://bucket/run, gs://": "examples within other messages",
    "or start anew at another URL": "the end of other messages",
    ", or a loader from": "the end of another message",
    "training ends at once": "within the line on a training that was told to stop",
    "\0, says the proxy": "an answer of FaultProxy to a client",
    "HTTP/1.1 \0": "the same",
}
"""Modules, and beginnings of texts, that are no messages or have no row of their own, with the reason."""


def texts_of(node: ast.AST) -> Iterator[str]:
    """Yield the texts in *node*, with a hole for each variable part. Docstrings and types are left out."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.arg() | ast.AnnAssign(annotation=ast.Name("TypeAlias")):
            return
        case ast.Assert(test=test):
            yield from texts_of(test)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in NOT_SHOWN:
            return
        case ast.Constant(value=str(text)):
            yield re.sub(r"%(?:\.\d)?[sdfr]|\{\w*\}", HOLE, text)
        case ast.JoinedStr(values=values):
            yield "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in values)
            for part in values:
                yield from () if isinstance(part, ast.Constant) else texts_of(part)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from texts_of(child)


def texts_in(folder: Path) -> dict[str, str]:
    """Return the texts in all modules below *folder*, each with a module that has it."""
    paths = sorted(folder.rglob("*.py"))
    return {
        text: str(path.relative_to(folder)) for path in paths for text in texts_of(ast.parse(path.read_text("utf-8")))
    }


def words_of(part: str) -> list[str]:
    """Return the words of *part* without the punctuation around them."""
    return re.findall(r"[^\s.,:;()'\"`]+(?:[.,:;()'\"`]+[^\s.,:;()'\"`]+)*", part)


def runs_in(text: str, num_letters: int = 12) -> set[str]:
    """
    Return all three words in a row of *text*, and all two that have *num_letters* together.

    Punctuation is left out. No run goes across a variable part.
    """
    parts = [words_of(part) for part in DOTS.split(text)]
    runs = {(" ".join(part[i : i + n]), n) for part in parts for n in (2, 3) for i in range(len(part) - n + 1)}
    return {run for run, n in runs if n == 3 or len(run) >= num_letters}


TEXTS: Final = texts_in(SOURCES)
MESSAGES: Final = {
    text
    for text, module in TEXTS.items()
    if max(len(part.split()) for part in text.split(HOLE)) > 3
    if module not in NOT_MET and not text.startswith(tuple(NOT_MET))
}
ROWS: Final = [
    span.replace("\n", " ")
    for line in (ROOT / "docs/operating.md").read_text().splitlines()
    if line.startswith("|")
    for span in re.findall(r"`([^`]+)`", line.split("|")[1])
]


def missing_from(texts: Iterable[str]) -> set[str]:
    """Return the messages with which *texts* share neither words that no other message has, nor the longest part."""
    uses = Counter(run for text in MESSAGES for run in runs_in(text))
    parts = [part for text in texts for part in DOTS.split(text)]
    there = {run for part in parts for run in runs_in(part) if uses[run] == 1}
    quoted = {" ".join(words_of(part)) for part in parts}
    longest = {text: max((" ".join(words_of(part)) for part in DOTS.split(text)), key=len) for text in MESSAGES}
    return {
        text.replace(HOLE, "...")
        for text in MESSAGES
        if not runs_in(text) & there and not any(longest[text] in part for part in quoted)
    }


def test_each_message_has_a_row() -> None:
    """A user who meets a message finds in docs/operating.md what causes it and what to do."""
    assert missing_from(ROWS) == set()


def test_each_message_is_provoked() -> None:
    """Some test expects each message by its own words."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    found = {text.replace(".*", HOLE) for path in tests for text in texts_of(ast.parse(path.read_text("utf-8")))}
    assert missing_from(re.sub(r"\\(.)", r"\1", text) for text in found) == set()


def test_each_row_quotes_a_message_that_exists() -> None:
    """A row does not outlive its message: each part of a quotation is in the sources."""
    there = {run for text in TEXTS for run in runs_in(text, 0)}
    parts = [part for span in ROWS for part in DOTS.split(span) if len(runs_in(part, 0)) > 1]
    assert [part for part in parts if not runs_in(part, 0) & there] == []


def test_each_exemption_is_needed() -> None:
    """An exemption does not outlive the module or the text that it is for."""
    assert [each for each in NOT_MET if each not in TEXTS.values() and not any(t.startswith(each) for t in TEXTS)] == []
