"""Notices that a session asks for. Ranks are threads, each with a pusher process of its own."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import threading
import time
from contextlib import suppress

import pytest
from hearing import DEADLINE_S, Heard, until, until_idle
from metadata import AwsServer
from steps import Holder, numbers, state_of

from spot_plugins.agreement import Notice
from spot_plugins.config import SpotConfig
from spot_plugins.errors import CommitError, Preempted
from spot_plugins.events import LastSecondsPlanned, Leaving, NoticeReceived, NoticeSourcesFound, Staged
from spot_plugins.leave import way_out
from spot_plugins.leave.phase import Phase
from spot_plugins.notices import Announcement
from spot_plugins.notices.aws import AwsSource
from spot_plugins.ranks import BoardClosedError, Job
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(AwsSource, "every_s", 0.05)


def train(url, body, *, world_size=1, settings=lambda rank: {}):
    """Run ``body(session, rank, heard)`` on every rank; return what it returns, or the step it left with."""

    def run(ranks):
        heard = Heard()
        config = SpotConfig(url=url, every_steps=1_000_000, **settings(ranks.rank))
        session = SpotSession(config, ranks=ranks, on_event=[heard])
        session.register("part", Holder(state_of(1)), replicated=("both",))
        try:
            session.resume()
            return body(session, ranks.rank, heard)
        except Preempted as preempted:
            return ("left with", preempted.step)
        finally:
            session.close()

    return run_thread_ranks(world_size, run)


def test_a_file_that_appears_makes_the_rank_leave(tmp_path):
    """
    As a SIGTERM does: the step is saved, made durable, and left with. What was found and heard is told.
    """
    file, url = tmp_path / "notice", str(tmp_path / "run")

    def body(session, rank, heard):
        session.after_step(1)
        before = time.monotonic()
        (tmp_path / "whole").write_text('{"grace_seconds": 40}')
        (tmp_path / "whole").rename(file)  # an empty file would be a notice too
        heard.wait(NoticeReceived)
        try:
            session.after_step(2)
        finally:
            (found,), (notice,), (leaving,) = map(heard.of, (NoticeSourcesFound, NoticeReceived, Leaving))
            assert (found.providers, found.sources, found.grace_s) == ((), ("file",), 30)
            assert (notice.source, notice.kind) == ("file", "hard")
            passed_s = time.monotonic() - before
            assert 40 - passed_s <= notice.grace_s <= 40
            assert leaving.durable
            assert 40 - passed_s <= leaving.left_s <= 40

    assert train(url, body, settings=lambda rank: {"notice_file": str(file)}) == [("left with", 2)]
    assert numbers(LocalStore(url)) == [2]


def test_a_notice_on_one_machine_is_one_on_all(tmp_path):
    """
    Only one rank asks who knows. All leave with one step, at once: nobody knows yet how long a save takes.
    """
    file, url, meeting = tmp_path / "notice", str(tmp_path / "run"), threading.Barrier(2)

    def body(session, rank, heard):
        session.after_step(1)
        if rank == 1:
            file.touch()
        until(lambda: session.notice, "the notice is known")
        try:
            for step in itertools.count(2):
                time.sleep(0.01)
                meeting.wait(DEADLINE_S)
                session.after_step(step)
        finally:
            assert [plan.is_promised for plan in heard.of(LastSecondsPlanned)] == [False]

    left = train(url, body, world_size=2, settings=lambda rank: {"notice_file": str(file)} if rank == 1 else {})

    assert len(set(left)) == 1
    assert numbers(LocalStore(url)) == [left[0][1]]


@pytest.mark.parametrize(("world_size", "told"), [(1, [0]), (2, [1]), (2, [0, 1])])
def test_a_soft_notice_is_saved_for_and_trained_on(world_size, told, tmp_path, monkeypatch, caplog):
    """
    On whichever rank it comes, and on how many of a machine: all ranks save one step more, and go on. It names no
    deadline.
    """
    url, meeting = str(tmp_path / "run"), threading.Barrier(world_size)
    with AwsServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)

        def body(session, rank, heard):
            session.after_step(1)
            until_idle(session)
            server.rebalance = server.rebalance or time.time()
            if rank in told:
                notice = heard.wait(NoticeReceived)
                assert notice == NoticeReceived(source="aws rebalance", grace_s=None, kind="soft")
            step = 1
            while not heard.of(Staged) and step < 1_000_000:
                step += 1
                meeting.wait(DEADLINE_S)
                session.after_step(step)
            if world_size > 1:  # each rank of a machine hears of it in its own time
                session._opened.listener._on_announcement(Announcement("aws rebalance", None, "soft"))
                time.sleep(0.1)
            (staged,) = heard.of(Staged)
            for later in range(step + 1, step + 20):
                meeting.wait(DEADLINE_S)
                session.after_step(later)
            assert heard.of(Staged) == [staged]
            assert session.notice is None
            return staged.step, staged.trigger

        asks = {"notice_sources": ("aws",)}
        saved = train(url, body, world_size=world_size, settings=lambda rank: asks if rank in told else {})
    assert len(set(saved)) == 1
    assert saved[0][1] == "soft"
    assert "this machine may be taken before long; saving once, and training on" in caplog.text


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_earliest_deadline_counts(world_size, tmp_path, monkeypatch, caplog):
    """
    A notice that comes second but ends sooner shortens the time; one that ends later does not lengthen it.
    """
    url = str(tmp_path / "run")
    with AwsServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)

        def body(session, rank, heard):
            before = time.monotonic()
            if rank == 0:  # not before: a notice before training has begun makes all leave at once
                server.announce(110)
            until(lambda: session.notice, "the notice is known")
            if rank == 0:
                session._opened.listener._on_signal("SIGTERM", time.monotonic())
            until(lambda: session.notice.source == "SIGTERM", "the earlier end is known")
            deadline = session.notice.deadline
            assert before + 30 <= deadline <= time.monotonic() + 30
            if rank == 0:
                session._opened.listener._on_signal("SIGTERM", time.monotonic() + 50)
            time.sleep(0.1)
            assert session.notice.deadline == deadline
            session.after_step(1)

        left = train(url, body, world_size=world_size, settings=lambda rank: {"notice_sources": ("aws",)})
    assert left == [("left with", 1)] * world_size
    assert re.search(r"this machine will be taken at \S+ UTC, \d+ s left: training on, and saving in time", caplog.text)


def test_an_earlier_end_that_comes_in_the_last_wait_cuts_it_short(tmp_path):
    """
    The pusher stands still. The first notice would wait for two minutes; the second ends that within its own time.
    """

    def body(session, rank, heard):
        os.kill(session._opened.pusher.pid, signal.SIGSTOP)
        session._opened.listener._on_signal("SIGTERM", time.monotonic() + 90)
        first = session.notice
        threading.Timer(0.2, session._opened.listener._on_signal, ("SIGTERM", time.monotonic() - 28)).start()
        try:
            session.after_step(1)
        finally:
            os.kill(session._opened.pusher.pid, signal.SIGCONT)
            assert time.monotonic() < first.leave_by
            assert not heard.of(Leaving)[0].durable

    assert train(str(tmp_path / "run"), body) == [("left with", 1)]


def test_a_last_save_that_takes_longer_than_planned_is_waited_for(tmp_path):
    """
    By the plan everything must be stored by now. A third of the time that is kept for leaving is enough to exit.
    """

    def body(session, rank, heard):
        pusher = session._opened.pusher.pid
        os.kill(pusher, signal.SIGSTOP)
        now = time.monotonic()
        session._opened.agreement.notify(Notice("file", now + 2 * DEADLINE_S, margin_s=2 * DEADLINE_S))
        threading.Timer(0.2, os.kill, (pusher, signal.SIGCONT)).start()
        try:
            session.after_step(1)
        finally:
            assert now + DEADLINE_S < session.notice.wait_until < session.notice.deadline
            assert heard.of(Leaving)[0].durable

    assert train(str(tmp_path / "run"), body) == [("left with", 1)]


@pytest.mark.parametrize("is_on_its_way", [False, True])
def test_a_rank_at_its_end_is_told_of_one_that_left_without_its_share(is_on_its_way, tmp_path):
    """
    The notice of rank 1 leaves time, and its last state cannot be saved. Rank 0 has stored its own share, or its pusher
    stands still. Rank 1 does not train on for that share.
    """
    config = SpotConfig(url=str(tmp_path / "run"), every_steps=1_000_000)
    heard, pids = Heard(), []

    def on_event(event):
        heard(event)
        if isinstance(event, Leaving) and pids:  # before the ranks meet
            os.kill(pids.pop(), signal.SIGCONT)

    def run(ranks):
        holder = Holder(state_of(1))
        with SpotSession(config, ranks=ranks, on_event=on_event) as session:
            session.register("part", holder, replicated=("both",))
            session.resume()
            if ranks.rank == 0:
                if is_on_its_way:
                    pids.append(session._opened.pusher.pid)
                    os.kill(pids[0], signal.SIGSTOP)
                session.finish(1)
            session.after_step(1)
            if is_on_its_way:
                heard.wait(Staged, trigger="end")
            holder.state = {"both": object()}
            session._opened.listener._on_announcement(Announcement("test", time.monotonic() + 120))
            until(lambda: session.notice, "the notice is known")
            with suppress(Preempted):
                for step in itertools.count(2):
                    session.after_step(step)

    with pytest.raises(CommitError, match=r"step 1 .*: rank 1: the rank left before its share was stored"):
        run_thread_ranks(2, run)
    assert not heard.of(LastSecondsPlanned, choice="train_on")


@pytest.mark.parametrize("place", ["step", "pause"])
@pytest.mark.parametrize("is_lost", [False, True], ids=["all meet", "one is lost"])
def test_a_step_is_called_stored_once_all_ranks_have_met(is_lost, place, tmp_path, caplog, monkeypatch):
    """
    A rank that is lost after the ranks agreed may not have stored its share. Rank 0 looks whether it is there.

    In a pause it does not stay to look, because nobody could store it. So it does not say that the step is there.
    """
    caplog.set_level(logging.INFO, "spot_plugins")
    config = SpotConfig(url=str(tmp_path), every_steps=1_000_000)
    meet = Job.meet

    def meet_or_end(job, *args):
        if is_lost and job.rank == 1:
            job.board.close()
            raise EOFError
        return meet(job, *args)

    monkeypatch.setattr(Job, "meet", meet_or_end)

    def run(ranks):
        with SpotSession(config, ranks=ranks) as session, suppress(Preempted, EOFError):
            session.register("part", Holder(state_of(1)), replicated=("both",))
            session.resume()
            if place == "step":
                notify(session)
            for step in itertools.count(1):
                session.after_step(step)
                if place == "pause":
                    with session.pause(step) as pause:
                        notify(session)
                        until(lambda: session.notice, "the notice is known")
                        pause.check()

    def notify(session):
        if session._opened.job.rank == 0:
            session._opened.listener._on_signal("SIGTERM", time.monotonic())

    run_thread_ranks(2, run)
    (said,) = [record.getMessage() for record in caplog.records if "leaving with code 143" in record.getMessage()]
    step = numbers(LocalStore(str(tmp_path)))[0]
    if not is_lost:
        assert said == f"step {step} is stored; leaving with code 143"
    elif place == "step":
        assert re.fullmatch(rf"step {step} is stored, though rank 1 .*; leaving with code 143", said)
    else:
        assert re.fullmatch(
            rf"step {step} may NOT be stored by all ranks: rank 1: rank 1 .*, and no other rank has stored its share: "
            r"the step was saved before the ranks stood still; leaving with code 143\. The next attempt resumes from "
            r"it if all shares are there, and else from the step before",
            said,
        )


@pytest.mark.parametrize(("has_notice", "ends_with"), [(True, "Preempted"), (False, "RankLostError")])
def test_a_rank_that_waits_for_one_that_has_left_leaves_too(has_notice, ends_with, tmp_path):
    """Before training, if that rank had a notice. Otherwise its end is an error."""
    file = tmp_path / "notice"

    def run(ranks):
        settings = {"notice_file": str(file)} if ranks.rank == 1 else {}
        session = SpotSession(SpotConfig(url=str(tmp_path / "run"), every_steps=1_000_000, **settings), ranks=ranks)
        try:
            session.open()
            if ranks.rank == 0:
                session.resume()
            elif has_notice:
                file.touch()
                until(lambda: session.notice is not None, "it has a notice")
        except (Preempted, BoardClosedError) as error:
            return type(error).__name__
        finally:
            session.close()

    assert run_thread_ranks(2, run) == [ends_with, None]


def test_a_notice_because_of_which_another_rank_has_left_may_come_a_moment_later(tmp_path, monkeypatch):
    monkeypatch.setattr(way_out, "NOTICE_S", DEADLINE_S)
    file = tmp_path / "notice"
    session = SpotSession(SpotConfig(url=str(tmp_path / "run"), every_steps=1_000_000, notice_file=str(file)))
    session.open()

    def wait_for_another_rank():
        with session._opened.way_out.before_training():
            file.touch()
            raise BoardClosedError("rank 1 has ended")

    with pytest.raises(Preempted):
        wait_for_another_rank()
    assert session._phase.now is Phase.CLOSED


def test_nothing_to_ask_takes_no_thread(tmp_path):
    """
    On a machine of no provider there is nothing to poll. With something, the thread ends with the session.
    """

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "spot-notices"]

    assert train(str(tmp_path / "a"), lambda *_: len(threads())) == [0]
    settings = {"notice_file": str(tmp_path / "notice")}
    assert train(str(tmp_path / "b"), lambda *_: len(threads()), settings=lambda rank: settings) == [1]
    assert threads() == []


def test_the_launchers_timeout_is_the_grace_of_a_signal(tmp_path, monkeypatch):
    """
    The launcher kills behind it, whatever the settings say.
    """
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "12")

    def body(session, rank, heard):
        session._opened.listener._on_signal("SIGTERM", time.monotonic())
        assert heard.wait(NoticeReceived).grace_s == 12
        assert session.notice.deadline - time.monotonic() <= 12
        session.after_step(1)

    settings = {"grace_seconds": 300}
    assert train(str(tmp_path / "run"), body, settings=lambda rank: settings) == [("left with", 1)]
