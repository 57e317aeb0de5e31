"""Frozen tensors are stored once; those that only look frozen are stored with every step, as they were then."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing, contextmanager

import pytest
import torch
from hearing import Heard, pusher_pid, until, until_end_known, until_idle
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, SaveAbandoned, Staged
from spot_plugins.push import FrozenUse
from spot_plugins.save.frozen import FrozenSet, FrozenSets, FrozenState
from spot_plugins.save.layout import plan_layout
from spot_plugins.save.shared_buffer import SharedBuffer
from spot_plugins.save.snapshot import Snapshot
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart
from spot_plugins.state.live_tensor import Changes, LiveTensor
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks

pytestmark = pytest.mark.long  # pushes real steps by real processes

TRAINED_BYTES = 3 * 4 * (16 * 4 + 4)  # weights and two moments of the head


class Quantized(nn.Module):
    """Keeps tensors beside its parameters, as layers of 4 bits do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(0, 256, (64, 256), dtype=torch.uint8), requires_grad=False)
        self.absmax = torch.rand(20_000)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight.absmax"] = self.absmax

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.absmax.copy_(state_dict.pop(prefix + "weight.absmax"))
        super()._load_from_state_dict(state_dict, prefix, *args)


drawing = threading.Lock()
"""Ranks that are threads share torch's generator."""


def tuned(seed=0):
    """A frozen base, and a head that is trained."""
    with drawing:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"base": nn.Linear(300, 300), "quantized": Quantized(), "head": nn.Linear(16, 4)})
    model["base"].requires_grad_(False)
    return model, torch.optim.AdamW(model["head"].parameters())


def step(model, optimizer):
    optimizer.zero_grad()
    model["head"](torch.randn(2, 16)).square().mean().backward()
    optimizer.step()


@contextmanager
def session_of(url, model, optimizer, *, ranks=None, **settings):
    heard = Heard()
    session = SpotSession(SpotConfig(url=str(url), **{"every_steps": 10**6, **settings}), ranks=ranks, on_event=[heard])
    with closing(session):
        session.register("model", ModelPart(model), replicated=ModelPart.replicated)
        session.register("optimizer", OptimizerPart(optimizer, model), replicated=OptimizerPart.replicated)
        session.resumed = session.resume()
        yield session, heard


def save(session, heard, number):
    session.save(number)
    committed = heard.wait(Committed, step=number)
    until_idle(session)
    return committed


def restored(url):
    model, optimizer = tuned(seed=1)
    with session_of(url, model, optimizer) as (session, _):
        return session.resumed, weights(model)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def frozen_objects(url):
    return {path.name: path.stat().st_mtime_ns for path in (url / "frozen").glob("*")}


def test_frozen_weights_are_stored_once_for_all_steps_and_lives(tmp_path):
    """
    The first save stores the base; later ones stage and store a little more than what is trained, and each is whole.
    Their events have the size of the rest.
    The next life finds the base stored.
    """
    model, optimizer = tuned()
    step(model, optimizer)
    with session_of(tmp_path, model, optimizer) as (session, heard):
        first = save(session, heard, 1)
        assert first.num_bytes > 4 * 300 * 300 + 64 * 256 + 4 * 20_000
        objects = frozen_objects(tmp_path)
        for number in (2, 3):
            step(model, optimizer)
            later = save(session, heard, number)
            assert later.num_bytes < TRAINED_BYTES + 2000  # a header
            (staged,) = heard.of(Staged, step=number)
            assert staged.num_bytes == later.num_bytes
            assert staged.num_skipped_bytes == sum(each.stat().st_size for each in (tmp_path / "frozen").glob("*"))
        assert heard.of(Staged, step=1)[0].num_skipped_bytes == 0
    assert not heard.of(SaveAbandoned)
    assert_equal(restored(tmp_path)[1], weights(model))

    model, optimizer = tuned(seed=2)
    with session_of(tmp_path, model, optimizer) as (session, heard):
        assert session.resumed == 3
        step(model, optimizer)
        assert save(session, heard, 4).num_bytes < TRAINED_BYTES + 2000
    assert frozen_objects(tmp_path) == objects
    assert restored(tmp_path)[0] == 4
    assert_equal(restored(tmp_path)[1], weights(model))


def in_place(base):
    with torch.no_grad():
        base.weight.mul_(0.9)


def behind_the_version(base):
    base.weight.data.mul_(0.9)


def other_memory(base):
    base.weight.data = base.weight.data * 0.9


def a_few_rows(base):
    base.weight.data[::20].add_(1.0)


@pytest.mark.parametrize("change", [in_place, behind_the_version, other_memory, a_few_rows])
def test_what_changes_without_gradients_is_never_taken_from_an_earlier_step(change, tmp_path):
    """
    A momentum encoder has no gradients, yet changes behind every step: however it is done, each committed step has what
    it was then. At most the first save that sees it is given up.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer, keep_last=10) as (session, heard):
        expected = {}
        for number in range(1, 5):
            step(model, optimizer)
            change(model["base"])
            expected[number] = weights(model)
            session.save(number)
            until_idle(session)
    assert {event.step for event in heard.of(SaveAbandoned)} <= {2}
    for number in sorted(expected, reverse=True):
        if not heard.of(SaveAbandoned, step=number):
            resumed, found = restored(tmp_path)
            assert resumed == number
            assert_equal(found, expected[number])
            for path in (tmp_path / "steps").glob(f"{number:010d}-*/rank*"):
                path.unlink()


def test_what_changes_during_the_first_copy_is_stored_as_it_was_and_told(tmp_path, caplog):
    """
    The step that would bring the base for all later ones keeps it for itself.
    """
    model, optimizer = tuned()
    step(model, optimizer)
    gate = threading.Event()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        session._opened.saver.prepare()  # the memory for saves is made by the thread that waits next
        session._opened.saver._copier.do(gate.wait)
        session.save(1)
        expected = weights(model)
        behind_the_version(model["base"])
        gate.set()
        heard.wait(Committed, step=1)

    assert "weights without gradients change all the same, so they are stored with each step" in caplog.text
    assert frozen_objects(tmp_path) == {}
    assert_equal(restored(tmp_path)[1], expected)


def test_a_notice_stores_what_turns_out_not_to_be_frozen(tmp_path):
    """
    If the last save finds that a weight has changed that should not, it is made again with that weight, not given up.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        session.handle_signals()
        save(session, heard, 1)
        behind_the_version(model["base"])
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: session.notice, "the notice is heard")
        with pytest.raises(Preempted):
            session.after_step(2)
    assert restored(tmp_path)[0] == 2
    assert_equal(restored(tmp_path)[1], weights(model))


@pytest.mark.parametrize("ends", ["finish", "notice"])
@pytest.mark.parametrize("is_saved_before", [False, True])
def test_the_end_has_what_turns_out_not_to_be_frozen(is_saved_before, ends, tmp_path):
    """
    So is the last step of a training; also if it was being saved already, and that copy is given up only then.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        session.watch_signals()
        save(session, heard, 1)
        behind_the_version(model["base"])
        expected = weights(model)
        if is_saved_before:
            gate = threading.Event()
            session._opened.saver._copier.do(gate.wait)
            session.save(2)
            threading.Timer(0.2, gate.set).start()
        if ends == "finish":
            session.finish(2)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: session.notice, "the notice is heard")
            with pytest.raises(Preempted):
                session.after_step(2)
    told = "weights without gradients have changed since they were stored"
    assert [event.reason for event in heard.of(SaveAbandoned, step=2)] == [told] * is_saved_before
    assert restored(tmp_path)[0] == 2
    assert_equal(restored(tmp_path)[1], expected)


def test_a_pause_holds_what_turns_out_not_to_be_frozen(tmp_path):
    """
    So does the state that is held for a notice in a pause.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        session.handle_signals()
        save(session, heard, 1)
        behind_the_version(model["base"])
        expected = weights(model)
        with pytest.raises(Preempted), session.pause(2) as pause:  # noqa: PT012 - what raises is its last line
            behind_the_version(model["base"])
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: session.notice, "the notice is heard")
            pause.check()
    assert restored(tmp_path)[0] == 2
    assert_equal(restored(tmp_path)[1], expected)


def test_weights_that_are_frozen_later_or_trained_later(tmp_path):
    """
    When layers are frozen, or set free again, each save goes by what is so at its time.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        save(session, heard, 1)
        model["base"].requires_grad_(True)
        optimizer.add_param_group({"params": [*model["base"].parameters()]})
        for number in (2, 3):
            optimizer.zero_grad()
            model["base"](torch.randn(2, 300)).square().mean().backward()
            optimizer.step()
            assert save(session, heard, number).num_bytes > 3 * 4 * 300 * 300
            expected = weights(model)
    model, optimizer = tuned(seed=3)
    optimizer.add_param_group({"params": [*model["base"].parameters()]})
    with session_of(tmp_path, model, optimizer) as (session, _):
        assert session.resumed == 3
    assert_equal(weights(model), expected)


def test_a_new_pusher_process_is_told_again(tmp_path):
    """
    A pusher process that replaces a dead one learns which frozen blobs are stored; nothing is stored twice.
    """
    model, optimizer = tuned()
    with session_of(tmp_path, model, optimizer) as (session, heard):
        save(session, heard, 1)
        objects = frozen_objects(tmp_path)
        os.kill(pusher := pusher_pid(session), signal.SIGKILL)
        until_end_known(session, pusher)
        step(model, optimizer)
        assert save(session, heard, 2).num_bytes < TRAINED_BYTES + 2000
    assert frozen_objects(tmp_path) == objects
    assert_equal(restored(tmp_path)[1], weights(model))


def test_a_pusher_that_dies_while_a_step_refers_to_what_it_knew(tmp_path):
    """
    A step that was begun when the old process knew the frozen blobs is stored with them by the next process.
    """
    model, optimizer = tuned()
    step(model, optimizer)
    with session_of(tmp_path, model, optimizer) as (session, heard):
        save(session, heard, 1)
        os.kill(pusher := pusher_pid(session), signal.SIGSTOP)
        session._opened.saver._copier.do(lambda: until_end_known(session, pusher))
        session.save(2)
        os.kill(pusher, signal.SIGKILL)
        heard.wait(Committed, step=2)
    assert not heard.of(SaveAbandoned)
    assert restored(tmp_path)[0] == 2
    assert_equal(restored(tmp_path)[1], weights(model))


def test_a_pusher_that_dies_with_a_step_that_refers_to_what_it_knew(tmp_path):
    """
    So is a step that the old process had already.
    """
    model, optimizer = tuned()
    step(model, optimizer)
    with session_of(tmp_path, model, optimizer) as (session, heard):
        save(session, heard, 1)
        os.kill(session._opened.pusher.pid, signal.SIGSTOP)
        step(model, optimizer)
        expected = weights(model)
        session.save(2)
        session.fence()
        heard.wait(Staged, step=2)
        os.kill(session._opened.pusher.pid, signal.SIGKILL)
        assert heard.wait(Committed, step=2).num_bytes < TRAINED_BYTES + 2000
    assert not heard.of(SaveAbandoned)
    assert restored(tmp_path)[0] == 2
    assert_equal(restored(tmp_path)[1], expected)


def live(*tensors):
    return {str(number): LiveTensor(tensor, changes=Changes.NEVER) for number, tensor in enumerate(tensors)}


LAYOUT = plan_layout(live(torch.zeros(4)), 0)


def staged(sets, stored=(), tensor=None, layout=LAYOUT):
    """The use and the number of the set that *sets* give a step with *tensor*, if the sets *stored* are."""
    frozen = sets.stage(live(tensor), layout, lambda number: number in stored)
    return frozen.use, frozen.number


def test_a_set_is_brought_until_it_is_stored_and_then_referred_to():
    """
    One that never got to the store is brought anew, and so is one that the store has lost.
    """
    sets, tensor = FrozenSets(), torch.zeros(4)
    assert staged(sets, tensor=tensor) == (FrozenUse.BRINGS, 1)
    assert staged(sets, tensor=tensor) == (FrozenUse.BRINGS, 2)
    assert staged(sets, tensor=tensor, stored=[1]) == (FrozenUse.BRINGS, 3)
    assert staged(sets, tensor=tensor, stored=[3]) == (FrozenUse.REFERS, 3)
    assert staged(sets, tensor=tensor, stored=[3]) == (FrozenUse.REFERS, 3)
    assert staged(sets, tensor=tensor) == (FrozenUse.BRINGS, 4)
    assert staged(sets, tensor=tensor, stored=[4]) == (FrozenUse.REFERS, 4)
    other = plan_layout(live(torch.zeros(4)), 0)
    assert staged(sets, tensor=tensor, layout=other, stored=[4]) == (FrozenUse.BRINGS, 5)


def test_once_a_change_was_seen_nothing_is_shared_any_more():
    """
    Neither those tensors, though they are as before, nor any others.
    """
    sets, tensor = FrozenSets(), torch.zeros(4)
    staged(sets, tensor=tensor)
    staged(sets, tensor=tensor, stored=[1])
    assert staged(sets, tensor=torch.zeros(4), stored=[1]) == (FrozenUse.NONE, 0)
    assert staged(sets, tensor=tensor, stored=[1]) == (FrozenUse.NONE, 0)
    other = plan_layout(live(torch.zeros(4)), 0)
    assert staged(sets, tensor=tensor, layout=other) == (FrozenUse.NONE, 0)


@pytest.mark.parametrize("old", FrozenState)
@pytest.mark.parametrize("new", FrozenState)
def test_a_set_moves_forward_only(old, new):
    """
    A changed one is never trusted again, and a stored one is not new again.
    """
    frozen = FrozenSet(1, LAYOUT, live(torch.zeros(4)))
    if old is not FrozenState.NEW:
        frozen.move(old)
    if new.value < old.value:
        with pytest.raises(AssertionError):
            frozen.move(new)
    else:
        frozen.move(new)
        assert frozen.state is new


@pytest.mark.parametrize("reads_values", [False, True])
def test_one_check_compares_places_or_values(reads_values):
    """
    A changed value behind the version is seen by values alone, new memory with the same values by places alone.
    """
    tensor = torch.arange(4.0)
    with closing(SharedBuffer(1, LAYOUT.num_bytes)) as buffer:
        for change, is_seen in [(lambda: tensor, False), (tensor.clone, not reads_values)]:
            frozen = FrozenSet(1, LAYOUT, live(tensor))
            Snapshot(buffer, LAYOUT, live(tensor)).issue()
            frozen.take_sample(buffer)
            assert frozen.check(live(change()), values_by=buffer if reads_values else None) != is_seen
            assert (frozen.state is FrozenState.CHANGED) == is_seen
        tensor.data[1] = 5.0
        assert frozen.check(live(tensor), values_by=buffer if reads_values else None) != reads_values


@pytest.mark.parametrize("changes_on", [None, 1])
def test_ranks_share_the_frozen_weights_also_when_one_of_them_sees_a_change(changes_on, tmp_path):
    """
    Each rank stores its part of the base, once. One that takes it for changed stores its own part with each step, and
    what the ranks have stored still fits together.
    """

    def life(ranks):
        model, optimizer = tuned()
        with session_of(tmp_path, model, optimizer, ranks=ranks, keep_last=10) as (session, heard):
            for number in range(1, 5):
                with drawing:
                    torch.manual_seed(number)
                    step(model, optimizer)
                if ranks.rank == changes_on:
                    with torch.no_grad():
                        model["base"].weight.add_(0.0)  # the same values, a new version
                save(session, heard, number)
            return weights(model), [event.num_bytes for event in heard.of(Committed)]

    (expected, sizes), (_, other_sizes) = run_thread_ranks(2, life)

    assert restored(tmp_path)[0] == 4
    assert_equal(restored(tmp_path)[1], expected)
    assert max(sizes[1:]) < TRAINED_BYTES + 2000
    assert (max(other_sizes[1:]) < TRAINED_BYTES + 2000) == (changes_on is None)
    store = LocalStore(str(tmp_path))
    assert len([*store.keys("frozen/")]) >= 2
