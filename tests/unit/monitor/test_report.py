"""The report on logs that were written by hand: each figure, and pages and lines that no log can break."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import typer
from event_logs import BEGAN_AT, recount, write_log
from typer.testing import CliRunner

from spot_plugins.cli.report import report as report_verb
from spot_plugins.economics.rates import exact_interval
from spot_plugins.eventlog.reading import read_event_log
from spot_plugins.eventlog.records import Ended, Heartbeat, Started, TrainerGone, TrainingBegan
from spot_plugins.events import (
    Committed,
    Leaving,
    NoticeReceived,
    Resumed,
    SharesCounted,
    Staged,
)
from spot_plugins.format.keys import attempt_key
from spot_plugins.monitor.advice import advice_of, shown_s
from spot_plugins.monitor.attempts import SILENT_S
from spot_plugins.monitor.figures import Prices, report_of
from spot_plugins.monitor.page import page_of
from spot_plugins.monitor.text import document_of, text_of
from spot_plugins.store import LocalStore, MemoryStore

LATER = BEGAN_AT + 1e6


def staged(step, trigger="steps", stall_s=0.5, copy_s=1.0):
    return Staged(step=step, trigger=trigger, num_bytes=10, stall_s=stall_s, copy_s=copy_s)


def committed(step, push_s=4.0):
    return Committed(step=step, num_bytes=10, push_s=push_s)


def resumed(step, load_s=3.0):
    return Resumed(step=step, from_attempt=1, from_world_size=1, num_bytes=10, from_local_bytes=0, load_s=load_s)


def ended(step, *, is_finished=False, error=None):
    return Ended(step=step, is_finished=is_finished, error=error)


def notice(source="SIGTERM", kind="hard"):
    return NoticeReceived(source=source, grace_s=30.0, kind=kind)


KILLED = [
    (100.0, Started(process_s=20.0)),
    (105.0, TrainingBegan(step=None)),
    (165.0, staged(60)),
    (170.0, committed(60)),
    (225.0, Heartbeat(step=120)),
]
LEFT = [
    (1000.0, Started(process_s=10.0)),
    (1004.0, resumed(60)),
    (1005.0, TrainingBegan(step=60)),
    (1035.0, notice()),
    (1037.0, staged(91, "notice")),
    (1040.0, committed(91)),
    (1040.5, Leaving(step=91, durable=True, left_s=20.0)),
    (1041.0, ended(91)),
    (1041.2, TrainerGone()),
]
FINISHED = [
    (2050.0, Started(process_s=10.0)),
    (2053.0, resumed(91, load_s=1.0)),
    (2055.0, TrainingBegan(step=91)),
    (2065.0, staged(100, "end", copy_s=0.5)),
    (2066.0, committed(100)),
    (2067.0, ended(100, is_finished=True)),
]


@pytest.fixture
def store():
    return MemoryStore()


def report(store, now=LATER, prices=Prices(), num_attempts=0):  # noqa: B008 - it is frozen
    for number in range(1, num_attempts + 1):
        store.put(attempt_key(number), b"{}")
    return report_of("s3://bucket/run", read_event_log(store), prices, now)


@pytest.fixture
def three(store):
    """A run that is killed, gets a notice, and finishes."""
    for number, entries in enumerate((KILLED, LEFT, FINISHED), 1):
        write_log(store, number, entries)
    return store


def test_each_second_is_in_one_category(three):
    """Counted by hand: 120 s of training in the first attempt, of which half was lost."""
    found = report(three)
    assert found.seconds == pytest.approx(
        {
            "productive": 59.75 + 31 + 9.5,
            "wasted": 59.75,
            "startup": 20 + 10 + 10,
            "prep": 5 + 2 + 4,
            "restore": 3 + 1,
            "save": 0.5,
            "leave": 5 + 2.5,
        }
    )
    assert found.paid_s == pytest.approx(145 + 51 + 27)
    assert found.goodput == pytest.approx(100.25 / 223)
    assert found.waiting_s == pytest.approx((990 - 225) + (2040 - 1041))


def test_steps_ends_and_losses(three):
    """Right to the heartbeat: 120 steps were seen, 60 were stored."""
    found = report(three)
    assert [each.how for each in found.attempts] == ["killed", "left", "finished"]
    assert [(each.start_step, each.reached_step) for each in found.attempts] == [(0, 120), (60, 91), (91, 100)]
    assert [(each.kept_steps, each.lost_steps) for each in found.attempts] == [(60, 60), (31, 0), (9, 0)]
    assert (found.kept_steps, found.lost_steps) == (100, 60)
    assert found.attempts[1].notices == ((BEGAN_AT + 1035.0, "SIGTERM"),)
    assert found.num_interruptions == 2
    days = 223 / 86400
    assert found.per_day == pytest.approx((2 / days, *exact_interval(2, days)))


def test_the_providers_figure_is_beside_the_counted_one(three):
    """By hand: the second attempt has two machines, and 2 interruptions in 223 s have a limit of 94 a day."""
    write_log(three, 1, KILLED, rank=1, world_size=2)  # a second rank of the same machine
    write_log(three, 2, LEFT, rank=1, world_size=2, host="another")
    machines = (145 + 51 * 2 + 27) / 223
    for share, place in ((0.2, "below"), (1 - 1e-16, "below"), (0.0, "below")):
        found = report_of("run", read_event_log(three), Prices(), LATER, share)
        assert found.published_per_day == pytest.approx(-math.log(1 - share) / 30 * machines)
        assert document_of(found)["interruptions"]["published_per_day"] == found.published_per_day
        sentence = f"By the provider's figure it would be {found.published_per_day:.2g} per day, which is {place} that"
        assert sentence in text_of(found)
        assert sentence in page_of(found).replace("&#x27;", "'")
    for per_day, place in ((500.0, "within"), (5000.0, "above")):
        assert f"which is {place} that interval" in text_of(replace(found, published_per_day=per_day))
    assert "provider" not in text_of(report(three))
    assert document_of(report(three))["interruptions"]["published_per_day"] is None


def test_the_providers_figure_is_an_option_of_the_verb(tmp_path):
    """A share is read as in ``spot plan``. What is no share is refused with code 2."""
    write_log(LocalStore(str(tmp_path)), 1, KILLED)
    app = typer.Typer(rich_markup_mode=None)
    app.command()(report_verb)
    done = CliRunner().invoke(app, [str(tmp_path), "--text", "--rate-per-month", "20%"])
    assert done.exit_code == 0, done.output
    assert "By the provider's figure it would be 0.0074 per day, which is" in done.stdout
    refused = CliRunner().invoke(app, [str(tmp_path), "--rate-per-month", "often"])
    assert refused.exit_code == 2
    assert "rate_per_month='often' is no share of the machines" in refused.stderr


def test_an_independent_count_agrees(three):
    """From the raw lines, by other rules."""
    agree(report(three), recount({key: three.get(key) for key in three.keys("")}))


def agree(found, counted):
    assert found.goodput == pytest.approx(counted["goodput"], rel=1e-9)
    assert found.paid_s == pytest.approx(counted["paid_s"], rel=1e-9)
    assert found.seconds == pytest.approx(counted["seconds"], rel=1e-9)
    assert (found.kept_steps, found.lost_steps) == (counted["kept_steps"], counted["lost_steps"])
    assert {each.number: each.lost_steps for each in found.attempts} == counted["lost"]
    assert {each.number: each.how for each in found.attempts} == counted["ends"]
    assert found.num_interruptions == counted["interruptions"]


def test_money_needs_prices(three):
    """One GPU: 223 s were paid, of which 100.25 s were useful."""
    assert report(three).money is None
    money = report(three, prices=Prices(1.5, 6.0)).money
    hours, useful = 223 / 3600, 100.25 / 3600
    expected = (hours, 1.5 * hours, 1.5 * (hours - useful), 6 * useful - 1.5 * hours)
    assert (money.gpu_hours, money.spent, money.lost, money.saved) == pytest.approx(expected)
    alone = report(three, prices=Prices(on_demand=6.0)).money
    assert (alone.spent, alone.lost, alone.saved) == (None, None, None)


@pytest.mark.parametrize("jump_s", [21600.0, -21600.0])
def test_a_clock_that_is_set_changes_no_figure(three, jump_s):
    """All times of an attempt are by its clock as it was in the end, which is likelier right than before."""
    write_log(three, 2, LEFT, offset=BEGAN_AT + jump_s)
    expected = report(three)
    write_log(three, 2, LEFT, jump=(1036.0, jump_s))
    assert report(three) == expected


def test_an_attempt_without_a_successor_loses_what_is_not_stored(store):
    """A next attempt would begin at the step that is stored, or where this one began."""
    write_log(store, 1, KILLED)
    [attempt] = report(store).attempts
    assert (attempt.how, attempt.kept_steps, attempt.lost_steps) == ("killed", 60, 60)
    write_log(store, 1, [each for each in KILLED if not isinstance(each[1], Committed)])
    [attempt] = report(store).attempts
    assert (attempt.kept_steps, attempt.lost_steps) == (0, 120)


def test_an_attempt_that_runs_has_lost_nothing(store):
    """It counts as killed once it is silent for a while, or once its pusher has seen its end."""
    write_log(store, 1, KILLED)
    last = BEGAN_AT + 225
    [attempt] = report(store, now=last + SILENT_S).attempts
    assert (attempt.how, attempt.lost_steps) == ("running", 0)
    assert report(store, now=last + SILENT_S).num_interruptions == 0
    assert report(store, now=last + SILENT_S + 1).attempts[0].how == "killed"
    write_log(store, 1, [*KILLED, (226.0, TrainerGone())])
    assert report(store, now=last + 2).attempts[0].how == "killed"
    write_log(store, 1, KILLED)
    assert report(store, now=last, num_attempts=2).attempts[0].how == "killed"


@pytest.mark.parametrize(
    ("error", "how"), [("RuntimeError", "failed"), ("KeyboardInterrupt", "stopped"), (None, "stopped")]
)
def test_errors_are_no_interruptions(store, error, how):
    """Of a provider, who would get a rate of them otherwise."""
    write_log(store, 1, [*KILLED, (230.0, ended(121, error=error))])
    found = report(store)
    assert (found.attempts[0].how, found.attempts[0].error) == (how, error)
    assert found.num_interruptions == 0
    assert found.lost_steps == 61


def test_steps_of_all_later_attempts_decide(store):
    """Step 60 turned out to be damaged, so the third attempt begins anew; nothing of the first two is kept."""
    write_log(store, 1, KILLED)
    write_log(store, 2, LEFT)
    write_log(store, 3, [(2000.0, Started(process_s=None)), (2001.0, TrainingBegan(step=None))])
    write_log(store, 4, [(3000.0, Started(process_s=None))])  # it never began to train
    found = report(store)
    assert [(each.kept_steps, each.lost_steps) for each in found.attempts] == [(0, 120), (0, 31), (0, 0), (0, 0)]
    assert found.seconds["productive"] == 0
    assert sum(found.seconds.values()) == pytest.approx(sum(each.paid_s for each in found.attempts))
    agree(found, recount({key: store.get(key) for key in store.keys("")}))


def test_a_step_is_stored_when_all_ranks_have_stored_it(store):
    """Rank 1 never stored step 60, and is the one that was killed; rank 0 only failed."""
    write_log(store, 1, [*KILLED, (230.0, ended(120, error="RuntimeError"))], world_size=2)
    write_log(store, 1, [each for each in KILLED if not isinstance(each[1], Committed)], rank=1, world_size=2)
    [attempt] = report(store).attempts
    assert (attempt.how, attempt.committed_step, attempt.lost_steps) == ("killed", None, 120)
    counted = SharesCounted(step=60, missing_ranks=(), visible_step=40)
    write_log(store, 1, [*KILLED, (230.0, counted)], world_size=2)
    assert report(store).attempts[0].committed_step == 40


def test_a_superseded_attempt_does_no_harm(store):
    """It trains on beside its successor. Its time is paid, and its steps are lost."""
    write_log(store, 1, [*KILLED, (5000.0, Heartbeat(step=5000))])
    write_log(store, 2, LEFT)
    found = report(store)
    assert found.waiting_s == 0
    assert [(each.kept_steps, each.lost_steps) for each in found.attempts] == [(60, 4940), (31, 0)]


def test_soft_notices_are_no_notices(store):
    """Nobody leaves because of one."""
    write_log(store, 1, [*KILLED, (226.0, notice("rebalance", "soft"))])
    assert report(store).attempts[0].notices == ()


def test_the_longest_loss_comes_first(three):
    """One sentence for each loss that is worth one."""
    first, second, *_ = advice_of(report(three))
    assert first.startswith("Get machines sooner")
    assert second.startswith("Save more often")
    assert "60 steps" in second
    saves = [(170.0 + 10 * n, committed(60 + n)) for n in (1, 2)]
    write_log(three, 1, [*KILLED, *saves])
    assert "a save came every 10.0 s" in advice_of(report(three))[1]


HOSTILE = "<script>alert(1)</script>\x1b[31m\n&\"'"


@pytest.fixture
def hostile(store):
    """A log whose texts and numbers are an attack."""
    entries = [
        (100.0, Started(process_s=2.0**52)),
        (105.0, TrainingBegan(step=2**52)),
        (106.0, resumed(3, load_s=-1e15)),
        (107.0, notice(HOSTILE)),
        (108.0, staged(2**52, stall_s=1e15, copy_s=-1e15)),
        (109.0, committed(1, push_s=math.nan)),
        (110.0, staged(7, "end", copy_s=math.inf)),
        (32e9, ended(5, error=HOSTILE)),
    ]
    write_log(store, 1, entries, host=HOSTILE, offset=0.0)
    write_log(store, 2, [(1.0, Heartbeat(step=None))], offset=31e9)
    return store


class Strict(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.tags = set()
        self.attributes = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_page_runs_and_loads_nothing(hostile):
    """Whatever is in the log. The page is well-formed, and each text is escaped."""
    page = page_of(replace(report(hostile), url=f"s3://bucket/{HOSTILE}", notes=(HOSTILE,)))
    strict = Strict()
    strict.feed(page)
    assert strict.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form", "a"})
    assert not {name for name in strict.attributes if name.startswith("on") or name in ("src", "href")}
    assert "http:" not in page
    assert "url(" not in page
    assert "\x1b" not in page
    ET.fromstring(page.replace("<!DOCTYPE html>", ""))


def test_no_line_controls_a_terminal(hostile):
    """Escape sequences are replaced, and so are ends of lines within a text."""
    text = text_of(replace(report(hostile), notes=(HOSTILE,)))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "?[31m?" in text


def test_a_hostile_log_keeps_the_sums(hostile):
    """No second is counted twice, and none is negative."""
    found = report(hostile)
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert found.paid_s == pytest.approx(sum(each.paid_s for each in found.attempts))


def test_the_document_is_json(three, hostile):
    """With a version, and without numbers that JSON does not have."""
    document = json.loads(json.dumps(document_of(report(three)), allow_nan=False))
    assert document["version"] == 1
    assert document["seconds"].keys() == document["taxonomy"].keys()


def test_the_page_has_a_bar_for_each_attempt(three):
    """With a mark for each save and each notice, and a title for each part."""
    page = page_of(report(three))
    root = ET.fromstring(page.replace("<!DOCTYPE html>", ""))
    bars = root.findall(".//svg")
    assert [bar.find("title").text for bar in bars] == [
        "attempt 1: killed, 2.4 min",
        "attempt 2: left after SIGTERM, 51.0 s",
        "attempt 3: finished, 27.0 s",
    ]
    assert [len(bar.findall("path")) for bar in bars] == [0, 1, 0]
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_limits_of_the_log_are_told(three):
    """The report names records that were dropped, damaged or unknown, and attempts without a log."""
    three.put("events/nonsense", b"")
    found = report(three, num_attempts=5)
    assert "Attempts without an event log, which no figure includes: 4, 5" in found.notes
    assert "1 lines or segments are damaged, and were left out" in found.notes
    for text in (text_of(found), page_of(found)):
        assert all(note in text for note in found.notes)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.0012, "1.2 ms"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (1e6, "11.6 d")],
)
def test_durations_are_shown_in_a_fitting_unit(seconds, text):
    assert shown_s(seconds) == text
