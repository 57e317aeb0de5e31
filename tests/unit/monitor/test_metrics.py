"""The metrics of a session: their names, what each event changes, and targets that do not work."""

from __future__ import annotations

import gc
import importlib
import math
import os
import pickle
import re
import socket
import sys
import time
import weakref
from contextlib import contextmanager, suppress

import pytest
from event_logs import write_log
from hearing import Heard, until, until_gone, until_idle, until_pushers_end
from monitoring import get, promtool
from ports import free_port
from prometheus_client import generate_latest
from steps import Holder, numbers, state_of

from spot_plugins import events
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.eventlog import reading
from spot_plugins.eventlog.reading import read_event_log
from spot_plugins.eventlog.records import Heartbeat, Started, TrainerGone, TrainingBegan
from spot_plugins.eventlog.watchers import Watched
from spot_plugins.format.keys import VERIFIED_KEY
from spot_plugins.monitor import prometheus
from spot_plugins.monitor.figures import Prices, report_of
from spot_plugins.monitor.instruments import NAMES, OF_THE_RUN
from spot_plugins.monitor.prometheus import Metrics
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.testing import FaultProxy, run_thread_ranks


@pytest.fixture(autouse=True)
def as_one_process(monkeypatch):
    """Let no variable of a launcher say which rank of its machine a session is."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


@contextmanager
def training(url, metrics, *, ranks=None, heard=None, **settings):
    """An open session that has resumed, and a function that does steps and saves each."""
    heard = Heard() if heard is None else heard
    config = SpotConfig(url=url, **{"every_steps": 10**6, **settings})
    with SpotSession(config, ranks=ranks, on_event=[metrics, heard]) as session:
        holder = Holder(state_of(0, 0 if ranks is None else ranks.rank))
        session.register("part", holder, replicated=("both",))
        session.resume()

        def do(*steps):
            for step in steps:
                holder.state = state_of(step, 0 if ranks is None else ranks.rank)
                session.after_step(step)
                session.save(step)
                heard.wait(events.Committed, step=step)
                until_idle(session)  # or the next step may be written to no disk

        yield session, do


def values(page):
    """The samples of a *page*, by name and then by labels other than run and rank."""
    found = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", page, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = tuple(sorted((key, value) for key, value in pairs.items() if key not in ("run", "rank")))
        found.setdefault(name, {})[key] = float(value)
    return found


def page_at(port):
    """Wait until *port* serves a page, and return it."""

    def served():
        with suppress(OSError):
            return get(f"http://127.0.0.1:{port}/metrics")

    return until(served, "the page is served")


def families(page):
    return set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))


PAGE = {
    "spot_run_info",
    "spot_step",
    "spot_committed_step",
    "spot_last_commit_timestamp_seconds",
    "spot_last_verify_timestamp_seconds",
    "spot_training_began_timestamp_seconds",
    "spot_save_interval_seconds",
    "spot_stall_seconds",
    "spot_stage_seconds",
    "spot_local_write_seconds",
    "spot_push_seconds",
    "spot_staged_bytes_total",
    "spot_pushed_bytes_total",
    "spot_skipped_bytes_total",
    "spot_saves_total",
    "spot_saves_deferred_total",
    "spot_saves_abandoned_total",
    "spot_push_failures_total",
    "spot_notices_total",
    "spot_notice_deadline_timestamp_seconds",
    "spot_commit_margin_seconds",
    "spot_resumes_total",
    "spot_resume_seconds",
    "spot_run_began_timestamp_seconds",
    "spot_lost_steps_total",
    "spot_interruptions_total",
    "spot_badput_seconds_total",
    "spot_goodput_ratio",
}


def test_names_and_values_of_a_session_on_its_page(url):
    """The names are the ones that dashboards rely on. The page is on loopback, and promtool likes it."""
    port = free_port()
    before = time.time()
    with training(url, Metrics(port), every_seconds=70, local_dir=url + "-local") as (_, do):
        do(1, 2)
        page = page_at(port)
        found = values(page)
        assert families(page) == PAGE == NAMES
        assert promtool("check", "metrics", stdin=page) == (0, "")
        assert set(re.findall(r'run="([^"]*)"', page)) == {url}
        assert set(re.findall(r'rank="([^"]*)"', page)) == {"0"}
        [(labels, one)] = found["spot_run_info"].items()
        assert (dict(labels)["attempt"], dict(labels)["world_size"], one) == ("1", "1", 1)
        assert found["spot_step"] == found["spot_committed_step"] == {(): 2}
        assert before < found["spot_training_began_timestamp_seconds"][()] < time.time()
        assert before < found["spot_last_commit_timestamp_seconds"][()] < time.time()
        assert found["spot_save_interval_seconds"] == {(): 70}
        assert found["spot_saves_total"][("trigger", "explicit"),] == 2
        assert found["spot_pushed_bytes_total"][()] == found["spot_staged_bytes_total"][()] > 0
        assert found["spot_skipped_bytes_total"] == {(): 0}
        for name in ("stall", "stage", "push"):
            assert found[f"spot_{name}_seconds_count"] == {(): 2}, name
        until(
            lambda: values(page_at(port))["spot_local_write_seconds_count"] != {(): 0}, "the write to the disk is told"
        )
        assert found["spot_resumes_total"][("result", "restored"),] == 0
        assert 0 < found["spot_goodput_ratio"][()] < 1
    with pytest.raises(OSError, match="refused"):
        get(f"http://127.0.0.1:{port}/metrics")


def test_a_closed_session_is_let_go():
    """It holds the buffers of its saves. The counts stay, and a copy for a spawned process begins anew."""

    class Reached:
        def __call__(self):
            return 7

    metrics, reached = Metrics(free_port()), Reached()
    config = SpotConfig(url="/run", every_steps=1)
    facts = {"attempt": 1, "rank": 0, "world_size": 1, "process_s": 1.0, "reached": reached}
    metrics.open(Watched(config=config, store=MemoryStore(), **facts))
    metrics(events.SaveDeferred(step=7, num_deferred=1))
    metrics.close(is_finished=False, error=None)
    is_held = weakref.ref(reached)
    del reached, facts
    until(lambda: gc.collect() is not None and is_held() is None, "the threads have ended and nothing holds it")
    found = values(generate_latest(metrics._registry).decode())
    assert found["spot_step"] == {(): 7}
    assert found["spot_saves_deferred_total"] == {(): 1}
    copied = values(generate_latest(pickle.loads(pickle.dumps(metrics))._registry).decode())
    assert copied["spot_saves_deferred_total"] == {(): 0}


@pytest.mark.parametrize(
    ("event", "name", "labels", "value"),
    [
        (events.SaveDeferred(step=3, num_deferred=9), "spot_saves_deferred_total", (), 1),
        (events.SaveAbandoned(step=3, reason="x"), "spot_saves_abandoned_total", (), 1),
        (
            events.Staged(step=3, trigger="steps", num_bytes=9, stall_s=0.1, num_skipped_bytes=70),
            "spot_skipped_bytes_total",
            (),
            70,
        ),
        (events.PushFailing(step=3, num_tries=4, reason="x"), "spot_push_failures_total", (), 1),
        (
            events.NoticeReceived(source="aws", grace_s=120.0),
            "spot_notices_total",
            (("kind", "hard"), ("source", "aws")),
            1,
        ),
        (events.Leaving(step=3, durable=True, left_s=20.0), "spot_commit_margin_seconds_bucket", (("le", "10.0"),), 0),
        (events.Leaving(step=3, durable=True, left_s=20.0), "spot_commit_margin_seconds_bucket", (("le", "30.0"),), 1),
        (
            events.CheckpointRejected(step=3, attempt=1, reason="x"),
            "spot_resumes_total",
            (("result", "rejected"),),
            1,
        ),
        (
            events.Salvaged(step=3, attempt=1, num_bytes=9, push_s=2.5),
            "spot_resume_seconds_sum",
            (("phase", "salvage"),),
            2.5,
        ),
        (
            events.Resumed(step=3, from_attempt=1, from_world_size=1, num_bytes=9, from_local_bytes=0, load_s=1.5),
            "spot_resume_seconds_sum",
            (("phase", "load"),),
            1.5,
        ),
        (
            events.IntervalChanged(
                interval_s=77.0, before_s=60.0, stall_s=0.1, push_s=1.0, mean_between_preemptions_s=1e4
            ),
            "spot_save_interval_seconds",
            (),
            77,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else "",
)
def test_an_event_changes_its_metric(event, name, labels, value, url, tmp_path):
    """Counted in the session itself, so that the place of each call is tested too."""
    port = free_port()
    metrics = Metrics(port)
    with training(url, metrics, every_seconds=60) as (session, _):
        session._bus.emit(event)
        found = values(page_at(port))
        assert found[name][labels] == value
        if isinstance(event, events.NoticeReceived):
            assert found["spot_notice_deadline_timestamp_seconds"][()] == pytest.approx(time.time() + 120, abs=60)


def test_figures_of_the_run_are_those_of_a_report(url):
    """Attempt 1 was killed at step 12 and had stored step 8, so 4 steps are lost. Attempt 2 adds to its figures."""
    store = LocalStore(url)
    with training(url, Heard()) as (session, do):
        do(8)
    pid = session._opened.pusher.pid
    until_gone(pid)
    shift = time.time() - 1000
    write_log(
        store,
        1,
        [
            (100.0, Started(process_s=20.0)),
            (110.0, TrainingBegan(step=None)),
            (200.0, events.Committed(step=8, num_bytes=1, push_s=1.0)),
            (230.0, Heartbeat(step=12)),
            (230.0, TrainerGone()),
        ],
        offset=shift - 230.0,
    )
    port = free_port()
    with training(url, Metrics(port)) as (session, do):
        do(9, 10)
        found = until(
            lambda: (page := values(page_at(port))) and "spot_goodput_ratio" in page and page,
            "the log of the first attempt is read",
        )
        pid = session._opened.pusher.pid
        session._opened.watchers._recorder.close()
        until(lambda: len(read_event_log(store).ranks) == 2, "the log is put")
    until_gone(pid)
    report = report_of("run", read_event_log(store), Prices(), time.time())
    assert report.lost_steps == 4
    assert found["spot_lost_steps_total"] == {(): 4}
    assert found["spot_interruptions_total"] == {(): 1}
    badput = {dict(labels)["reason"]: value for labels, value in found["spot_badput_seconds_total"].items()}
    for reason in ("wasted", "startup", "prep", "restore"):
        assert badput[reason] == pytest.approx(report.seconds[reason], abs=0.5), reason
    assert badput["wasted"] == pytest.approx(40.0)
    productive = found["spot_goodput_ratio"][()] * sum(badput.values()) / (1 - found["spot_goodput_ratio"][()])
    assert 80.0 < productive <= report.seconds["productive"] + 0.5
    assert found["spot_run_began_timestamp_seconds"][()] == pytest.approx(report.attempts[0].began_at, abs=1)


def test_the_time_of_the_last_verification_is_read(url):
    """Rank 0 reads the note of `spot verify`. A damaged one does not count as one."""
    store = LocalStore(url)
    port = free_port()
    for note, expected in ((b"[]", 0), (b'{"verified_at":"2026-11-29T13:44:29+00:00"}', 1795959869)):
        store.put(VERIFIED_KEY, note)
        metrics = Metrics(port)
        with training(url, metrics):
            until(
                lambda expected=expected: values(page_at(port))["spot_last_verify_timestamp_seconds"] == {(): expected},
                "the note is read",
            )


def test_a_session_that_fails_before_it_trains_is_a_failed_resume(url, tmp_path):
    """The text file of a run that is not finished stays, so that an alert can tell."""
    (tmp_path / "metrics").mkdir()
    metrics = Metrics(tmp_path / "metrics")
    config = SpotConfig(url=url, every_steps=1)
    with pytest.raises(RuntimeError), SpotSession(config, on_event=metrics):
        raise RuntimeError
    [file] = (tmp_path / "metrics").iterdir()
    assert values(file.read_text())["spot_resumes_total"][("result", "failed"),] == 1
    with training(url, metrics) as (session, do):
        do(1)
        session.finish(1)
    assert list((tmp_path / "metrics").iterdir()) == []


def test_two_ranks_of_a_machine_serve_one_page_and_write_two_files(url, tmp_path, caplog):
    """Rank 0 serves, rank 1 does not try. Each has its own text file."""
    port = free_port()
    (tmp_path / "metrics").mkdir()

    def body(ranks):
        heard = Heard()
        with training(url, Metrics(port, tmp_path / "metrics"), ranks=ranks, heard=heard) as (session, do):
            do(1)
            if ranks.rank == 0:
                heard.wait(events.SharesCounted, visible_step=1)
                page = values(page_at(port))
                assert page["spot_committed_step"] == {(): 1}
                assert page["spot_goodput_ratio"]
                until(lambda: len(list((tmp_path / "metrics").glob("*.prom"))) == 2, "both files are there")
            session.finish(1)

    run_thread_ranks(2, body)
    assert "metrics" not in caplog.text


def test_targets_that_do_not_work_are_told_once_and_disturb_nothing(url, tmp_path, caplog, monkeypatch):
    """A port that is taken, a directory that vanishes and a Pushgateway that refuses. The training finishes."""
    monkeypatch.setattr(prometheus, "EVERY_S", 0.01)
    folder = tmp_path / "metrics"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server, FaultProxy("http://127.0.0.1:1") as gateway:
        other = server.getsockname()[1]
        gateway.refuse()
        metrics = Metrics(other, folder, gateway.endpoint_url)
        folder.rmdir()
        with training(url, metrics) as (session, do):
            do(1, 2)
            until(lambda: caplog.text.count("does not work") == 3, "each target is told")
            do(3, 4)
            session.finish(4)
    until_pushers_end()  # a commit is told before the old steps are removed
    assert numbers(LocalStore(url)) == [4, 3]
    told = [record.getMessage() for record in caplog.records if "metrics: " in record.getMessage()]
    assert len(told) == 3, told
    for target in (f"127.0.0.1:{other}", str(folder), gateway.endpoint_url):
        [line] = [line for line in told if line.startswith(f"metrics: {target} does not work, and is tried again: ")]
        assert line.endswith("Training continues")


class DeafStore(MemoryStore):
    """Answers no request."""

    def keys(self, prefix):
        raise StoreError("list", prefix, "it does not answer")

    def get(self, key, *args):
        raise StoreError("get", key, "it does not answer")


def test_a_store_that_does_not_answer_hides_the_figures_of_the_run_alone(caplog, monkeypatch):
    """They would be wrong without the earlier attempts. One line says so."""
    monkeypatch.setattr(prometheus, "patiently", lambda call: call())
    monkeypatch.setattr(reading, "patiently", lambda call: call())
    port = free_port()
    metrics = Metrics(port)
    config = SpotConfig(url="/run", every_steps=1)
    facts = {"attempt": 2, "rank": 0, "world_size": 1, "process_s": 1.0, "reached": lambda: 5}
    metrics.open(Watched(config=config, store=DeafStore(), **facts))
    metrics.begin(4)
    until(lambda: caplog.text.count("is tried again") == 2, "the log and the note are told")
    assert "metrics: the event log of the run does not work" in caplog.text
    assert "metrics: the note of spot verify does not work" in caplog.text
    assert families(page_at(port)) == PAGE - OF_THE_RUN.keys()
    metrics.close(is_finished=False, error=None)


def test_a_forked_child_does_not_keep_the_port(url):
    """A worker of a data loader may outlive the trainer, whose next attempt needs the port."""
    port = free_port()
    ready, go = os.pipe()
    with training(url, Metrics(port)):
        page_at(port)
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)
            os._exit(0)
        os.close(ready)
    with training(url, Metrics(port)):
        page_at(port)
    os.close(go)
    os.waitpid(pid, 0)


def test_without_the_client_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "spot_plugins.monitor.prometheus")
    with pytest.raises(ConfigError, match="metrics need the package prometheus_client: pip install"):
        importlib.import_module("spot_plugins.monitor.prometheus")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (0, "target=0 is no port: give one from 1 to 65535, such as 9477"),
        ("127.0.0.1:99999", "target=99999 is no port"),
        (True, "target=True is no place for metrics: give a port such as 9477"),
        (math.pi, "is no place for metrics"),
        ("/no/such/folder", "or an existing directory for node_exporter's text files"),
        ("https://user:secret@gateway", "leave it out, and let a proxy on this machine add it"),
    ],
    ids=str,
)
def test_what_is_no_target_is_refused_at_once(target, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        Metrics(target)
    assert "secret" not in str(error.value)
