"""Steps that a program keeps: what survives pruning, across attempts and ranks, and what is said of the others."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event

import pytest
import torch
from hearing import DEADLINE_S, Heard, next_pusher, pusher_pid, until, until_gone, until_idle
from steps import Holder, assert_same, load, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, KeepFailed, Kept, Pruned, PushFailing, Released, SharesCounted
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.kept import kept_steps
from spot_plugins.format.keys import StepId, keep_key
from spot_plugins.push import process
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def store(url):
    return LocalStore(url)


@contextmanager
def training(url, *, ranks=None, state=None, **settings):
    """An open session that has resumed, its part and its events."""
    heard = Heard()
    config = SpotConfig(url=url, **{"every_steps": 1_000_000, "keep_last": 1, **settings})
    session = SpotSession(config, ranks=ranks, on_event=heard)
    try:
        holder = Holder(state_of(0) if state is None else state)
        session.register("part", holder, replicated=("both",))
        session.resume()
        yield session, holder, heard
    finally:
        session.close()


def train(session, holder, steps, *, saved=True):
    """Do *steps*, and save each one."""
    for step in steps:
        holder.state = state_of(step)
        session.after_step(step)
        if saved:
            session.save(step)
            until(lambda step=step: session._opened.pusher.has_ended(step), "the step is stored")


def test_a_kept_step_outlives_those_after_it(url, store):
    """Step 2 stays with keep_last=1, with its own values, and counts in no number; after its release it goes."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1, 2])
        session.keep(2)
        assert heard.wait(Kept) == Kept(step=2, attempt=1, owner="program")
        train(session, holder, [3, 4])
        heard.wait(Pruned, step=3)

        assert numbers(store) == [4, 2]
        assert session.kept == (2,)
        session.release(2)
        heard.wait(Released, step=2)
        train(session, holder, [5])
        heard.wait(Pruned, step=4)

        assert numbers(store) == [5]
        assert session.kept == ()
        assert list(store.keys("keep/")) == []


def test_a_step_stays_as_long_as_a_stored_step_names_it(url, store):
    """The state of step 3 names step 1, so a resume from step 3 needs it. It goes after step 4 is stored."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        heard.wait(Kept, step=1)
        train(session, holder, [2])
        session.keeper.release_after(1, "program", named_by=3)
        train(session, holder, [3])
        heard.wait(Pruned, step=2)
        assert numbers(store) == [3, 1]
        assert session.kept == (1,)

        train(session, holder, [4])
        heard.wait(Released, step=1)
        train(session, holder, [5])
        heard.wait(Pruned, step=4)
        assert numbers(store) == [5]
        assert session.kept == ()


def test_the_share_of_one_rank_releases_nothing(url, store):
    """
    Step 3 names step 1. Rank 0 stores its shares of steps 4 and 5, rank 1 does not. Then both pushers are killed. The
    next life resumes from step 3, and step 1 is there.
    """
    stopped, done = Event(), Barrier(2)

    def life(ranks):
        with training(url, ranks=ranks, state=state_of(0, ranks.rank)) as (session, holder, heard):
            for step in (1, 2, 3):
                holder.state = state_of(step, ranks.rank)
                session.after_step(step)
                session.save(step)
                heard.wait(Committed, step=step)
                if step == 1:
                    session.keep(1)
            session.keeper.release_after(1, "program", named_by=3)
            until_idle(session)
            if ranks.rank == 0:
                heard.wait(SharesCounted, step=3, missing_ranks=())
                stopped.wait(DEADLINE_S)
            else:
                os.kill(pusher_pid(session), signal.SIGSTOP)
                stopped.set()
            for step in (4, 5):
                holder.state = state_of(step, ranks.rank)
                session.after_step(step)
                session.save(step)
                if ranks.rank == 0:
                    heard.wait(Committed, step=step)
            if ranks.rank == 0:
                heard.wait(SharesCounted, step=4, missing_ranks=(1,), visible_step=3)
            done.wait(DEADLINE_S)
            assert heard.of(Released) == []
            pusher = pusher_pid(session)
            session.close()  # so that no other process takes the steps over
            os.kill(pusher, signal.SIGKILL)

    run_thread_ranks(2, life)

    def next_life(ranks):
        with training(url, ranks=ranks, state=state_of(0, ranks.rank)) as (session, _, _):
            return session.resumed_from, session.kept, session.keeper.state_of(1)["part"]["step"]

    assert run_thread_ranks(2, next_life) == [(3, (1,), 1)] * 2


@pytest.mark.parametrize("finishes", [False, True])
def test_a_step_that_all_ranks_have_stored_releases_what_it_does_not_name(finishes, url, store):
    """Rank 0 hears of it after its own share is stored, or at the end of the training."""

    def life(ranks):
        with training(url, ranks=ranks, state=state_of(0, ranks.rank)) as (session, holder, heard):
            train(session, holder, [1])
            session.keep(1)
            train(session, holder, [2])
            session.keeper.release_after(1, "program", named_by=2)
            train(session, holder, [3], saved=not finishes)
            if finishes:
                session.finish(3)
            elif ranks.rank == 0:
                heard.wait(Released, step=1)

    run_thread_ranks(2, life)
    until(lambda: not list(kept_steps(store)), "the mark is removed")


def test_a_second_wish_does_not_put_a_release_off(url, store):
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        session.keeper.release_after(1, "program", named_by=1)
        session.keeper.release_after(1, "program", named_by=3)
        train(session, holder, [2, 3])
        heard.wait(Released, step=1)


def test_a_step_that_is_wanted_again_is_not_released(url, store):
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        session.keeper.release_after(1, "program", named_by=1)
        session.keep(1)
        train(session, holder, [2, 3])
        heard.wait(Pruned, step=2)
        assert heard.of(Released) == []
        assert numbers(store) == [3, 1]


def test_later_attempts_keep_it_too(url, store):
    """The next life prunes as much as it likes, knows the step as kept, and can release it."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        heard.wait(Kept, step=1)
        train(session, holder, [2])
    for step in (3, 4):
        with training(url) as (session, holder, heard):
            assert session.kept == (1,)
            train(session, holder, [step])
            heard.wait(Pruned, step=step - 1)
            assert numbers(store) == [step, 1]
    with training(url) as (session, holder, heard):
        session.release(1)
        heard.wait(Released, step=1)
        train(session, holder, [5])
        heard.wait(Pruned, step=1)


def test_the_present_step_is_saved_now(url, store):
    """It need not be saved before: keep() saves it, with the values that it has."""
    with training(url) as (session, holder, heard):
        train(session, holder, [7], saved=False)
        session.keep(7)
        heard.wait(Committed, step=7)
        heard.wait(Kept, step=7)

    with training(url) as (session, holder, _):
        assert session.resumed_from == 7
    assert_same(holder.state, state_of(7))


@pytest.mark.parametrize("is_paused", [True, False])
def test_after_a_pause_the_state_from_before_it_is_kept(url, is_paused):
    """Validation swaps weights and counts; what is kept is the step as it was trained, from which training resumes."""
    with training(url) as (session, holder, heard):
        train(session, holder, [7], saved=False)
        with session.pause(7):
            holder.state = state_of(99)
            if is_paused:
                session.keep(7)
        if not is_paused:
            session.keep(7)
        heard.wait(Committed, step=7)
        heard.wait(Kept, step=7)

    with training(url) as (_, holder, _):
        assert_same(holder.state, state_of(7))


def test_a_step_of_an_earlier_attempt_can_be_kept(url, store):
    """The step that was resumed from is in the store already; it is marked as what it is."""
    with training(url) as (session, holder, _):
        train(session, holder, [1])
    with training(url) as (session, holder, heard):
        session.keep(1)
        assert heard.wait(Kept) == Kept(step=1, attempt=1, owner="program")
        train(session, holder, [2])
        assert numbers(store) == [2, 1]


def test_a_step_that_is_not_there_is_told(url, caplog):
    """Pruned steps cannot be kept any more, and steps to come not yet."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1, 2])
        heard.wait(Pruned, step=1)
        session.keep(1)
        assert "never committed, or was pruned" in heard.wait(KeepFailed, step=1).reason
        assert session.kept == ()
        with pytest.raises(ValueError, match="step 3 is not trained yet, the last one is 2"):
            session.keep(3)
        with pytest.raises(ValueError, match="owner='Best Model' must be a word in small letters"):
            session.keep(2, owner="Best Model")
    assert "step 1 is not kept" in caplog.text


def test_a_step_that_the_store_refuses_is_not_kept(url):
    """Its failure is told to whoever wants it, before the failure and after."""
    with training(url) as (session, holder, heard):
        (Path(url) / "steps").write_text("in the way of all steps")
        train(session, holder, [1], saved=False)
        session.keep(1)
        heard.wait(PushFailing, step=1)
        train(session, holder, [2], saved=False)
        session.save(2)
        told = "it will not be committed, because cannot put 'steps/0000000001"
        assert heard.wait(KeepFailed, step=1).reason.startswith(told)

        session.keep(1, owner="other")
        assert heard.wait(KeepFailed, owner="other").reason == "it could not be stored"
        (Path(url) / "steps").unlink()  # so that the pusher ends


def test_a_pusher_that_the_store_refuses_ends_after_its_time(url, monkeypatch):
    """Its session is closed, and the store takes neither the step nor its mark."""
    hurried = process._PROGRAM.replace("\nmain()", "\nmain.__globals__['LINGER_S'] = 0.1\nmain()")
    monkeypatch.setattr(process, "_PROGRAM", hurried)
    with training(url) as (session, holder, heard):
        for name in ("steps", "keep"):
            (Path(url) / name).write_text("in the way of all below it")
        train(session, holder, [1], saved=False)
        session.keep(1)
        heard.wait(PushFailing, step=1)
        pid = pusher_pid(session)
    until_gone(pid)


def test_a_wish_that_never_came_true_is_told_by_the_next_attempt(url, store):
    """A machine was lost between the mark and the commit; the mark goes, so that it is told once."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
    store.put(keep_key(StepId(2, 1), "program"), b"{}")

    with training(url) as (session, _, heard):
        assert (
            "an earlier attempt wanted it, but ended before all ranks had stored it"
            in heard.wait(KeepFailed, step=2).reason
        )
        heard.wait(Released, step=2)
        assert session.kept == ()
    assert list(kept_steps(store)) == []


def test_a_superseded_attempt_marks_and_releases_nothing(url, store):
    """A process that was taken for dead does not undo what the newer one keeps."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        heard.wait(Kept, step=1)
        claim_attempt(store, b"newer")
        session.release(1)
        heard.wait(Released, step=1)
        train(session, holder, [2], saved=False)
        session.keep(1, owner="other")
        assert "attempt" in heard.wait(KeepFailed, owner="other").reason
    assert [mark.owner for mark in kept_steps(store)] == ["program"]


def test_each_owner_releases_its_own(url, store):
    """The program and a host keep the same step, and neither lets it go for the other."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        session.keep(1)
        session.keep(1, owner="lightning")
        heard.wait(Kept, owner="lightning")
        session.release(1, owner="lightning")
        heard.wait(Released, owner="lightning")
        train(session, holder, [2])
        assert numbers(store) == [2, 1]
        assert session.kept == (1,)


def test_two_ranks_keep_one_step(url, store):
    """Both store their shares of the present step, one mark is put, and two ranks of the next life know of it."""

    def life(ranks):
        with training(url, ranks=ranks, state=state_of(0, ranks.rank)) as (session, holder, heard):
            first = session.resumed_from or 0
            known = session.kept
            for step in (first + 1, first + 2):
                holder.state = state_of(step, ranks.rank)
                session.after_step(step)
                if step == 1:
                    session.keep(1)
                    heard.wait(Committed, step=1)
                else:
                    session.save(step)
                    heard.wait(Committed, step=step)
            session.finish(first + 2)
            return known

    assert run_thread_ranks(2, life) == [(), ()]
    assert run_thread_ranks(2, life) == [(1,), (1,)]
    assert 1 in numbers(store)
    assert [mark.step_id for mark in kept_steps(store)] == [StepId(1, 1)]


def test_a_pusher_that_dies_takes_no_wish_along(url, store):
    """The next process gets the wishes without an answer."""
    with training(url) as (session, holder, heard):
        train(session, holder, [1])
        pid = pusher_pid(session)
        os.kill(pid, signal.SIGSTOP)
        session.keep(1)
        os.kill(pid, signal.SIGKILL)
        next_pusher(session, pid)
        heard.wait(Kept, step=1)


def test_frozen_weights_of_a_kept_step_survive(url, store):
    """A model with frozen layers shares their blobs among steps; the kept step still has them at the end."""
    model = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.Linear(400, 4))
    model[0].requires_grad_(False)
    session = SpotSession(SpotConfig(url=url, every_steps=1_000_000, keep_last=1), on_event=(heard := Heard()))
    with session:
        session.register_model(model, [torch.optim.SGD(model[1].parameters())])
        session.resume()
        for step in (1, 2, 3):
            session.after_step(step)
            session.save(step)
            heard.wait(Committed, step=step)
            if step == 1:
                session.keep(1)
        heard.wait(Pruned, step=2)
    for key in list(store.keys("steps/0000000003")):
        store.delete(key)

    assert list(store.keys("frozen/")) != []
    other = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.Linear(400, 4))
    with SpotSession(SpotConfig(url=url, every_steps=1_000_000)) as session:
        session.register_model(other, [torch.optim.SGD(other[1].parameters())])
        assert session.resume() == 1
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_notice_in_a_pause_after_keep_leaves_with_the_kept_step(url, store):
    """The step is saved once, by keep(), and the departure waits for it."""
    with training(url, grace_seconds=30) as (session, holder, heard):
        session.handle_signals()
        train(session, holder, [4], saved=False)
        pause = session.pause(4)
        pause.__enter__()
        session.keep(4)
        signal.raise_signal(signal.SIGTERM)
        until(lambda: session.notice, "the notice is known")
        with pytest.raises(Preempted):
            pause.check()
        assert len(heard.of(Committed, step=4)) == 1
    assert numbers(store) == [4]
    # The process that puts marks outlives the training.
    until(lambda: [mark.step_id for mark in kept_steps(store)] == [StepId(4, 1)], "the step is kept")
    assert load(store) is not None
