"""Records of the event log: each kind comes back as it was, and what is no record is refused."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import get_args

import pytest

from spot_plugins.eventlog.records import _CHECKS, MAX_CHARACTERS, MAX_LINE_BYTES, Entry, Record, decode, encode
from spot_plugins.events import IntervalChanged, PushFailing, StepDiffers

EXAMPLES = {
    "int": 7,
    "float": 1.5,
    "str": "a <b> \u2603",
    "bool": True,
    "int | None": None,
    "float | None": 2.5,
    "str | None": "x",
    "tuple[str, ...]": ("a", "b"),
    "tuple[int, ...]": (1, 2),
}


@pytest.mark.parametrize("kind", get_args(Entry), ids=lambda kind: kind.__name__)
def test_each_kind_comes_back(kind):
    """A new event whose field has a type without a check fails here."""
    entry = kind(**{each.name: EXAMPLES[each.type] for each in fields(kind)})
    record = Record(1_700_000_000.25, 12.5, entry)
    assert decode(encode(record)) == record
    assert EXAMPLES.keys() == _CHECKS.keys()


def test_infinite_numbers_come_back():
    """The interval before the first one is infinite, and JSON has no such number."""
    entry = IntervalChanged(
        interval_s=60.0, before_s=math.inf, stall_s=0.1, push_s=1.0, mean_between_preemptions_s=10.0
    )
    line = encode(Record(1.0, 1.0, entry))
    json.loads(line, parse_constant=pytest.fail)
    assert decode(line) == Record(1.0, 1.0, entry)


def test_secrets_are_hidden_in_each_text():
    """Also in those of a list."""
    for entry in (
        PushFailing(step=1, num_tries=1, reason="key hunter2 is refused"),
        StepDiffers(step=1, attempt=1, what=("hunter2",)),
    ):
        line = encode(Record(1.0, 1.0, entry), lambda text: text.replace("hunter2", "***"))
        assert b"hunter2" not in line
        assert b"***" in line


def test_long_texts_are_cut():
    """A line has a limit, and an error of a service may be a page of HTML."""
    line = encode(Record(1.0, 1.0, PushFailing(step=1, num_tries=1, reason="\u2603" * 100_000)))
    assert len(line) <= MAX_LINE_BYTES
    assert len(decode(line).entry.reason) == MAX_CHARACTERS


def line(**changes):
    """A heartbeat with *changes*."""
    body = {"at": 5.0, "monotonic": 6.0, "kind": "Heartbeat", "fields": {"step": 3}, **changes}
    return json.dumps(body).encode()


def test_a_later_version_may_add_fields_and_kinds():
    assert decode(line(fields={"step": 3, "new": []}, more=1)).entry.step == 3
    assert decode(line(kind="Unheard")) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 8000,
        b'{"at":NaN,"monotonic":1,"kind":"Heartbeat","fields":{"step":1}}',
        b'{"at":1' + b"0" * 6000 + b',"monotonic":1,"kind":"Heartbeat","fields":{"step":1}}',
        line(at=True),
        line(at=-1),
        line(at=1e300),
        line(monotonic="1"),
        line(kind=7),
        line(fields=[]),
        line(fields={}),
        line(fields={"step": "3"}),
        line(fields={"step": True}),
        line(fields={"step": -1}),
        line(fields={"step": 2**60}),
        line(fields={"step": 1.5}),
        line(kind="Dropped", fields={"num_records": None}),
        line(kind="Ended", fields={"step": 1, "is_finished": 1, "error": None}),
        line(kind="StepDiffers", fields={"step": 1, "attempt": 1, "what": "data"}),
        line(kind="Staged", fields={"step": 1, "trigger": "x", "num_bytes": 1, "stall_s": "1e999", "copy_s": 0}),
        line(padding="x" * MAX_LINE_BYTES),
    ],
    ids=range(24),
)
def test_what_is_no_record_is_refused(data):
    """With one kind of error, which a reader counts."""
    with pytest.raises(ValueError):  # noqa: PT011 - its subclasses have texts of their own
        decode(data)
