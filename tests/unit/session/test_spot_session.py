"""The session of one process: what a host may call, in which order, and what it gets."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from hearing import DEADLINE_S, Heard, kill_pusher_and_successor, pusher_pid, until, until_idle
from steps import Holder, assert_same, assert_whole, load, numbers, save, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import CommitError, ConfigError, IncompatibleCheckpointError, Preempted, UnsafeStateError
from spot_plugins.events import (
    AttemptStarted,
    Committed,
    Leaving,
    NoticeReceived,
    Pruned,
    Resumed,
    SaveAbandoned,
    SaveDeferred,
    Staged,
    Superseded,
)
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, merged_manifest_key
from spot_plugins.ranks import BoardClosedError
from spot_plugins.resume import join
from spot_plugins.session import SpotSession, ending, spot_session
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def store(url):
    return LocalStore(url)


@contextmanager
def training(url, *, state=None, part=None, ranks=None, hooks=(), **settings):
    """A session with one part, and its events. Closed at the end, whatever happens."""
    heard = Heard()
    config = SpotConfig(url=url, **{"every_steps": 1_000_000, **settings})
    session = SpotSession(config, ranks=ranks, on_event=[*hooks, heard])
    try:
        holder = part or Holder(state_of(0) if state is None else state)
        session.register("part", holder, replicated=("both",))
        yield session, holder, heard
    finally:
        session.close()


def test_an_empty_run_has_nothing_to_resume(url):
    """
    A first run starts from scratch, is told so, and its parts are left alone.
    """
    with training(url) as (session, holder, heard):
        assert session.resume() is None
        assert session.attempt == 1
        assert holder.num_loads == 0

    assert heard.of(AttemptStarted) == [AttemptStarted(attempt=1, world_size=1)]
    assert heard.of(Resumed) == []


def test_what_was_saved_comes_back_in_the_next_life(url):
    """
    The second life has the next attempt and the state of the last step, bit for bit; its event says from where.
    """
    with training(url, state=state_of(3)) as (session, _, heard):
        session.resume()
        session.save(3)
        committed = heard.wait(Committed, step=3)

    with training(url) as (session, holder, heard):
        assert session.resume() == 3
        assert session.attempt == 2

    assert_same(holder.state, state_of(3))
    (resumed,) = heard.of(Resumed)
    assert (resumed.step, resumed.from_attempt, resumed.num_bytes) == (3, 1, committed.num_bytes)


def test_a_model_comes_back_with_its_optimizer_and_scheduler(url):
    """
    One call registers them all, before the first life trains and before the second resumes.
    """

    def build(session):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        session.register_model(model, [optimizer], [scheduler])
        return model, optimizer, scheduler

    with training(url) as (session, _, heard):
        model, optimizer, scheduler = build(session)
        session.resume()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
        session.save(1)
        heard.wait(Committed, step=1)

    with training(url) as (session, _, _):
        restored = build(session)
        assert session.resume() == 1

    for one, other in zip((model, optimizer, scheduler), restored, strict=True):
        assert str(one.state_dict()) == str(other.state_dict())


@pytest.mark.parametrize("name", ["part", "", "a/b"])
def test_a_name_that_cannot_be_a_part_is_refused(url, name):
    """
    Names of parts are words, and each is taken once.
    """
    with training(url) as (session, _, _), pytest.raises(ValueError, match=r"registered already|no name for a part"):
        session.register(name, Holder({}))


def test_parts_that_do_not_belong_together_name_both_sides(url):
    """
    A checkpoint with another part, or without one, is not applied at all; the message lists what each side lacks.
    """
    with training(url) as (session, _, heard):
        session.register("scaler", Holder({}))
        session.resume()
        session.save(1)
        heard.wait(Committed, step=1)

    with training(url) as (session, holder, _):
        session.register("ema", Holder({}))
        with pytest.raises(IncompatibleCheckpointError) as caught:
            session.resume()

    assert "['scaler']" in str(caught.value)
    assert "['ema']" in str(caught.value)
    assert "Register the same parts as when it was saved" in str(caught.value)
    assert holder.num_loads == 0


def test_a_part_that_refuses_its_state_is_named(url):
    """
    What a part raises on a state that does not fit becomes one error that names the part and what to do.
    """

    class Picky(Holder):
        def load_state_dict(self, state):
            raise RuntimeError("size mismatch for weight")

    with training(url) as (session, _, heard):
        session.register("model", Holder({}))
        session.resume()
        session.save(1)
        heard.wait(Committed, step=1)

    with training(url) as (session, _, _):
        session.register("model", Picky({}))
        with pytest.raises(
            IncompatibleCheckpointError,
            match=r"'model' does not fit: size mismatch.*Use the model and settings it was saved with",
        ):
            session.resume()


def test_fewer_ranks_go_on_with_what_more_had_saved(url, store):
    """
    What the ranks share comes back whole; of what was each rank's own, the rank of that number gets its own again.
    """
    for rank in range(3):
        save(4, store, rank=rank, world_size=3)

    with training(url) as (session, holder, heard):
        assert session.resume() == 4

    assert_same(holder.state, state_of(4, rank=0))
    (resumed,) = heard.of(Resumed)
    assert resumed.from_world_size == 3


def test_a_rank_that_is_new_begins_with_what_rank_0_had_and_may_make_it_its_own(url, store):
    """
    Saved by one rank, loaded by three: the part learns which of them are new.
    """
    save(4, store)

    class Own(Holder):
        def for_new_rank(self, state, rank):
            return {**state, "name": f"new rank {rank}"}

    resumed = threading.Barrier(3)

    def body(ranks):
        with training(url, ranks=ranks, part=Own(state_of(0))) as (session, holder, _):
            assert session.resume() == 4
            resumed.wait(DEADLINE_S)  # a board of threads ends at once when rank 0 lets go of it
            return holder.state

    for rank, state in enumerate(run_thread_ranks(3, body)):
        assert_same(state, {**state_of(4), "name": f"new rank {rank}" if rank else "rank 0"})


def test_the_manifests_of_all_ranks_are_merged_in_the_end(url, store):
    """
    Rank 0's pusher adds the copy that spares readers a request per rank, also when it is done before the others.
    """

    def body(ranks):
        with training(url, ranks=ranks) as (session, _, _):
            session.resume()
            if ranks.rank == 1:
                until(lambda: any("rank-00000" in key for key in store.keys("steps/")), "rank 0 is done")
            session.finish(3)

    run_thread_ranks(2, body)

    until(lambda: merged_manifest_key(StepId(3, 1)) in store.keys(""), "they are merged")


def test_ranks_that_do_not_hold_the_same_are_told_so(url):
    """
    Tensors that all ranks are said to hold alike, but do not: each would store a part that belongs to nothing.
    """

    told = threading.Barrier(3)

    def body(ranks):
        state = {"both": {"weight": torch.zeros(2 + (ranks.rank == 2))}}
        with training(url, ranks=ranks, state=state) as (session, _, _):
            with pytest.raises(ConfigError, match=r"ranks \[2\] hold other parameters than rank 0"):
                session.resume()
            told.wait(DEADLINE_S)  # a board of threads ends at once when rank 0 lets go of it

    run_thread_ranks(3, body)


def test_a_rank_that_never_joins_is_not_waited_for_without_a_limit(url, monkeypatch):
    """
    The others end with an error, because the job cannot train without it.
    """
    monkeypatch.setattr(join, "JOIN_S", 0.05)

    def body(ranks):
        if ranks.rank == 0:
            told = r"nobody wrote 'joining/1' within 0\.\d+ s"
            with training(url, ranks=ranks) as (session, _, _), pytest.raises(BoardClosedError, match=told):
                session.resume()

    run_thread_ranks(2, body)


def test_state_that_cannot_be_saved_is_refused_before_the_first_step(url):
    """
    Not at the first save, hours later: resume() looks at it, and names the place.
    """

    class Custom:
        pass

    with (
        training(url, state={"metrics": {"best": Custom()}}) as (session, _, _),
        pytest.raises(UnsafeStateError, match=r"part/metrics/best.*Custom.*without pickle") as caught,
    ):
        session.resume()

    assert caught.value.path == "part/metrics/best"


def test_state_that_turns_unsafe_later_is_refused_when_it_is_saved(url, store):
    """
    Training is told with the key, instead of saving a checkpoint without it.
    """
    with training(url) as (session, holder, heard):
        session.resume()
        holder.state["later"] = object()
        with pytest.raises(UnsafeStateError, match="part/later"):
            session.save(1)
        del holder.state["later"]
        session.save(2)
        heard.wait(Committed, step=2)

    assert numbers(store) == [2]


def test_a_save_takes_the_state_of_that_moment(url, store):
    """
    What training changes right after save() returned is not in the checkpoint, in tensors and elsewhere.
    """
    with training(url, state={"w": torch.full((50_000,), 1.0), "log": [1]}) as (session, holder, heard):
        session.resume()
        session.save(1)
        holder.state["w"].fill_(2.0)
        holder.state["log"].append(2)
        heard.wait(Committed, step=1)

    state = load(store).state["part"]
    assert torch.equal(state["w"], torch.full((50_000,), 1.0))
    assert state["log"] == [1]


def test_a_look_at_more_than_one_value_is_refused(url):
    """
    The tensors of a step are read by a resume alone.
    """
    with training(url) as (session, _, _):
        session.resume()
        session.finish(1)
    with training(url) as (session, _, _):
        told = r"path=part leads to more than one plain value, which only resume\(\) can load"
        with pytest.raises(ConfigError, match=told):
            session.peek(("part",))


def test_finish_stores_the_last_step(url, store):
    """
    When finish() returns the last step is committed, though no trigger was due; and the process has not left.
    """
    with training(url, state=state_of(7)) as (session, _, heard):
        session.resume()
        for step in range(1, 8):
            session.after_step(step)
        session.finish(7)

        assert numbers(store) == [7]
        assert [(event.step, event.trigger) for event in heard.of(Staged)] == [(7, "end")]
    assert_same(load(store).state["part"], state_of(7))


def test_finish_leaves_no_more_steps_than_keep_last(url, store):
    """Although rank 0 prunes after its own share, when the step is not whole yet, and no later step comes."""
    is_pruned = threading.Event()

    def run(ranks):
        with training(url, ranks=ranks, keep_last=1) as (session, _, heard):
            session.resume()
            session.save(1)
            heard.wait(Committed, step=1)
            if ranks.rank == 0:
                session.save(2)
                heard.wait(Committed, step=2)
                until_idle(session)
                is_pruned.set()
            assert is_pruned.wait(DEADLINE_S)
            session.finish(2)
            return numbers(store) if ranks.rank == 0 else None

    assert run_thread_ranks(2, run) == [[2], None]


def test_a_store_that_hangs_at_the_end_does_not_hold_the_training(url, store, monkeypatch, caplog):
    """A warning tells of old steps that are left, and the pusher process removes them if it can."""
    monkeypatch.setattr(ending, "PRUNE_S", 0.2)
    with training(url, keep_last=1) as (session, _, heard):
        session.resume()
        session.save(3)
        heard.wait(Committed, step=3)
        pusher = pusher_pid(session)
        os.kill(pusher, signal.SIGSTOP)
        try:
            session.finish(3)
        finally:
            os.kill(pusher, signal.SIGCONT)

    assert "removed the older ones within 0 s. spot prune removes them" in caplog.text


def test_finish_does_not_save_twice(url):
    """
    A last step that is stored already is not stored again; neither is the one that was resumed from.
    """
    with training(url) as (session, _, heard):
        session.resume()
        session.save(7)
        session.finish(7)
        assert len(heard.of(Staged)) == 1

    with training(url) as (session, _, heard):
        assert session.resume() == 7
        session.finish(7)
        assert heard.of(Staged) == []


def test_a_state_without_tensors_is_saved_as_often_as_others(url, store):
    """
    Its step has no blobs. The memory that was lent for it is free again all the same.
    """
    with training(url, state={"x": 1}) as (session, holder, heard):
        session.resume()
        for step in range(1, 5):
            holder.state = {"x": step}
            session.save(step)
            heard.wait(Committed, step=step)
            until_idle(session)

    assert numbers(store)[0] == 4
    assert load(store).state["part"] == {"x": 4}


def test_a_step_is_saved_once(url, store):
    """
    The objects of a committed step are never written again, which could leave it half new and half old.
    """
    with training(url, state=state_of(5)) as (session, holder, heard):
        session.resume()
        session.save(5)
        heard.wait(Committed, step=5)
        before = {key: store.get(key) for key in store.keys("steps/")}
        holder.state = state_of(99)
        session.save(5)
        session.finish(5)

        assert len(heard.of(Staged)) == 1
    assert {key: store.get(key) for key in store.keys("steps/")} == before


def test_only_so_many_checkpoints_are_kept(url, store):
    """
    keep_last and keep_every decide what stays in the store, through the whole session; what goes is told.
    """
    with training(url, every_steps=1, keep_last=2, keep_every=4) as (session, _, heard):
        session.resume()
        for step in range(1, 8):
            until_idle(session)
            session.after_step(step)
        until_idle(session)
        session.finish(7)

    assert numbers(store) == [7, 6, 4]
    assert [event.step for event in heard.of(Pruned)] == [1, 2, 3, 5]
    assert_whole(store)


def test_a_training_that_fell_back_is_saved_and_resumed_from(url, store):
    """
    Both newest checkpoints are damaged: training goes on from an older one, and what it saves then, though older by
    number than the damaged ones, stays and is what the next life resumes from.
    """
    claim_attempt(store, b"")
    for step in (5, 9, 10):
        save(step, store, state=state_of(step), keep_last=2, keep_every=5)
    for step in (9, 10):
        store.put(f"{StepId(step, 1).prefix}r00000-b0000.safetensors", b"damaged")

    with training(url, every_steps=1, keep_last=2, keep_every=5) as (session, holder, heard):
        assert session.resume() == 5
        for step in (6, 7):
            until_idle(session)
            holder.state = state_of(step)
            session.after_step(step)
            heard.wait(Committed, step=step)
        until_idle(session)

    with training(url) as (session, holder, _):
        assert session.resume() == 7
        assert_same(holder.state, state_of(7))


def test_a_hook_that_raises_does_not_end_the_training(url, store, caplog):
    """
    The hook's error is logged, the other hooks hear the event, and everything is saved.
    """

    def broken(event):
        raise RuntimeError("the dashboard is down")

    with training(url, hooks=[broken], every_steps=1) as (session, _, heard):
        session.resume()
        session.after_step(1)
        session.finish(1)
        assert heard.of(Committed)

    assert numbers(store) == [1]
    assert "a subscriber failed on Staged" in caplog.text
    assert "the dashboard is down" in caplog.text


def test_a_notice_is_left_with_at_the_next_step(url, store):
    """
    SIGTERM: the step that is being trained is finished, saved, made durable; then Preempted, with code 143. A second
    SIGTERM changes nothing.
    """
    with training(url, state=state_of(3)) as (session, _, heard):
        session.handle_signals()
        session.resume()
        session.after_step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        heard.wait(NoticeReceived, source="SIGTERM")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted) as caught:
            session.after_step(3)

        assert caught.value.code == 143
        assert caught.value.step == 3
        assert numbers(store) == [3]
        (leaving,) = heard.of(Leaving)
        assert (leaving.step, leaving.durable) == (3, True)
        assert 0 < leaving.left_s <= 30
        assert len(heard.of(NoticeReceived)) == 1
    os.kill(os.getpid(), signal.SIGTERM)  # and another one while the process is on its way out


def test_a_block_on_the_main_thread_takes_sigterm(url, store):
    """
    As in the example of the class. Another session is refused meanwhile, and claims nothing. A thread takes no signals.
    """
    config = SpotConfig(url=url, every_steps=1_000_000)

    def open_on_a_thread():
        with SpotSession(config):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before, handlers = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=open_on_a_thread)
    thread.start()
    thread.join()
    with pytest.raises(Preempted) as caught, SpotSession(config) as session:  # noqa: PT012 - its last line raises
        session.register("part", Holder(state_of(3)), replicated=("both",))
        session.resume()
        with pytest.raises(ConfigError, match="SIGTERM is a notice to another"), SpotSession(config):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: session.notice, "the notice is there")
        session.after_step(3)

    assert caught.value.code == 143
    assert numbers(store) == [3]
    assert handlers == [before]
    assert session.attempt == 2


def test_a_pause_holds_the_state_of_its_step(url, store, caplog):
    """
    Weights that are swapped in a pause are not what is saved: a notice in the pause stores the state from before it.
    """
    with training(url, state=state_of(4)) as (session, holder, heard):
        session.handle_signals()
        session.resume()
        session.after_step(4)
        with pytest.raises(Preempted) as caught, session.pause(4) as pause:  # noqa: PT012 - its last line raises
            holder.state = state_of(99)
            pause.check()
            os.kill(os.getpid(), signal.SIGTERM)
            heard.wait(NoticeReceived)
            pause.check()

        assert caught.value.step == 4
    assert "SIGTERM: waiting for the next check in the pause, " in caplog.text
    assert numbers(store) == [4]
    assert_same(load(store).state["part"], state_of(4))


def test_a_pause_without_a_notice_stores_nothing(url, store):
    """
    After a pause training continues and its later saves are whole; what was held for the pause is forgotten.
    """
    with training(url, every_steps=6, state=state_of(5)) as (session, holder, _):
        session.resume()
        session.after_step(5)
        with session.pause(5) as pause:
            pause.check()
        holder.state = state_of(6)
        session.after_step(6)
        session.finish(6)

    assert numbers(store) == [6]
    assert_same(load(store).state["part"], state_of(6))


def test_a_notice_found_at_the_end_of_a_pause_is_left_with(url, store):
    """
    A host that never asks within its pause leaves when it ends.
    """
    with training(url) as (session, _, heard):
        session.handle_signals()
        session.resume()
        session.after_step(2)
        with pytest.raises(Preempted), session.pause(2):  # noqa: PT012 - the end of the block is what raises
            os.kill(os.getpid(), signal.SIGTERM)
            heard.wait(NoticeReceived)

    assert numbers(store) == [2]


def test_finish_after_a_notice_is_preempted(url, store):
    """
    The end of a training is stored, but the process leaves with 143 if it was told to go.
    """
    with training(url) as (session, _, heard):
        session.handle_signals()
        session.resume()
        session.after_step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        heard.wait(NoticeReceived)
        with pytest.raises(Preempted):
            session.finish(2)

    assert numbers(store) == [2]


def test_a_save_that_comes_too_soon_is_deferred_and_made_up_for(url, store):
    """
    While a push is under way no other periodic save begins; it is told once, and made as soon as the push is done.
    """
    with training(url, every_steps=1) as (session, _, heard):
        session.resume()
        stopped = session._opened.pusher.pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            for step in range(1, 6):
                session.after_step(step)
        finally:
            os.kill(stopped, signal.SIGCONT)
        until_idle(session)
        session.after_step(6)
        session.finish(6)

    assert [event.step for event in heard.of(Staged)] == [1, 6]
    assert heard.of(SaveDeferred) == [SaveDeferred(step=2, num_deferred=1)]
    assert numbers(store)[0] == 6


def test_the_last_step_is_pushed_again_when_its_pusher_died(url, store):
    """
    finish() does not take an abandoned push for a stored one, nor does the save before a preemption. It was abandoned
    because the process that replaced the first one died, too.
    """
    with training(url, state=state_of(8)) as (session, _, heard):
        session.resume()
        os.kill(session._opened.pusher.pid, signal.SIGSTOP)
        session.save(8)
        kill_pusher_and_successor(session)
        heard.wait(SaveAbandoned, step=8)
        session.finish(8)

    assert numbers(store) == [8]
    assert_same(load(store).state["part"], state_of(8))


def test_the_end_is_pushed_again_when_its_pusher_dies_with_it(url, store):
    """
    finish() waits for a push, the pusher dies: another one stores the end.
    """
    with training(url, state=state_of(8)) as (session, _, heard):
        session.resume()
        pusher = session._opened.pusher.pid
        os.kill(pusher, signal.SIGSTOP)
        killer = threading.Thread(target=lambda: (heard.wait(Staged, step=8), os.kill(pusher, signal.SIGKILL)))
        killer.start()
        session.finish(8)
        killer.join()

    assert numbers(store) == [8]
    assert_same(load(store).state["part"], state_of(8))


def test_a_push_that_is_lost_while_leaving_is_made_again(url, store):
    """
    After a notice, a pusher that dies with the last step is replaced as long as there is time.
    """
    with training(url, state=state_of(8)) as (session, _, heard):
        session.handle_signals()
        session.resume()
        pusher = session._opened.pusher.pid
        os.kill(pusher, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)
        heard.wait(NoticeReceived)
        killer = threading.Thread(target=lambda: (heard.wait(Staged, step=8), os.kill(pusher, signal.SIGKILL)))
        killer.start()
        with pytest.raises(Preempted):
            session.after_step(8)
        killer.join()

        assert heard.of(Leaving)[0].durable
    assert numbers(store) == [8]


def test_a_notice_while_the_end_is_being_stored_cuts_the_wait(url, caplog):
    """
    finish() waits long for a slow store, but not beyond the deadline of a notice that comes meanwhile.
    """
    with training(url, grace_seconds=0.5) as (session, _, heard):
        session.handle_signals()
        session.resume()
        pusher = session._opened.pusher.pid
        os.kill(pusher, signal.SIGSTOP)

        def notice():
            heard.wait(Staged, step=3)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=notice)
        thread.start()
        try:
            with pytest.raises(Preempted):
                session.finish(3)
        finally:
            thread.join()
            os.kill(pusher, signal.SIGCONT)

        assert heard.of(Leaving, step=3)[0].durable is False
    assert "step 3 is NOT stored yet, " in caplog.text
    assert "leaving with code 143. The pusher process continues to try" in caplog.text


def test_finish_says_when_the_end_is_not_stored(url, monkeypatch):
    """
    A training that ends well with a store that does not take the last step ends with an error, not with code 0.
    """
    monkeypatch.setattr(spot_session, "FINISH_WAIT_S", 0.2)
    with training(url) as (session, _, _):
        session.resume()
        pusher = session._opened.pusher.pid
        os.kill(pusher, signal.SIGSTOP)
        try:
            told = "step 3 is not known to be committed: the end of the training is not stored, and the pusher process "
            with pytest.raises(
                CommitError, match=told + r"continues to try\. Leave the machine on until that process ends"
            ):
                session.finish(3)
        finally:
            os.kill(pusher, signal.SIGCONT)


def test_finish_says_if_another_rank_does_not_answer(url, monkeypatch):
    """
    Nobody knows then whether the last step is whole.
    """
    monkeypatch.setattr(spot_session, "FINISH_WAIT_S", 0.2)
    is_over = threading.Event()

    def run(ranks):
        with training(url, ranks=ranks, grace_seconds=0.2) as (session, _, _):
            session.resume()
            if ranks.rank == 1:
                is_over.wait()
                return
            told = "rank 1: it is not known whether the end of the training is stored, because the rank does not answer"
            try:
                with pytest.raises(CommitError, match=told):
                    session.finish(3)
            finally:
                is_over.set()

    run_thread_ranks(2, run)


def test_a_training_that_a_newer_attempt_has_replaced_says_so_at_its_end(url, store, caplog):
    """
    It ends as it would have, because the newer attempt trains the run. But it says that its end is not stored.
    """
    with training(url) as (session, _, heard):
        session.resume()
        claim_attempt(store, b"")
        session.save(1)
        heard.wait(Superseded)
        session.finish(2)

    assert numbers(store) == []
    assert "step 2 is not stored, and will not be: a newer attempt" in caplog.text


def test_closing_twice_is_harmless_and_stores_what_was_staged(url, store):
    """
    close() waits for nothing; what is staged is stored by the pusher, which needs no trainer.
    """
    with training(url) as (session, _, _):
        session.resume()
        session.save(1)
        session.close()
        session.close()

    until(lambda: numbers(store) == [1], "the staged step is committed")
