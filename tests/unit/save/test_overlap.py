"""
Copies that go on while training does. What is saved is the state of the step, whoever changes it afterwards.

The copying thread is held up, so that whoever does not wait for it is found out every time, and not only on a slow day.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import threading
import time
from contextlib import closing, contextmanager

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hearing import DEADLINE_S, Heard, pusher_pid, until, until_end_known, until_idle, until_pushers_end
from lightning.pytorch import Callback, LightningModule, Trainer
from steps import Holder
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, Preempted, StoreError
from spot_plugins.events import Committed, EventBus, KeepFailed, SaveAbandoned, SaveDeferred, Staged
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.ranks import Job, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.save import copier, saver
from spot_plugins.save.snapshot import Snapshot
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart
from spot_plugins.store import LocalStore

pytestmark = pytest.mark.long  # pushes real steps by real processes

HELD_UP_S = 0.15


class ClosureLast(torch.optim.SGD):
    """Changes the weights before it calls its closure, as sharpness-aware minimization does."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data.add_(1.0)
        return closure()


OPTIMIZERS = {
    "foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "one by one": lambda p: torch.optim.AdamW(p, foreach=False),
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
    "closure last": lambda p: ClosureLast(p, lr=0.1, momentum=0.9),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))


def state_of(model, optimizers):
    """A copy of all tensors that a save should have, by name."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{number}/{index}/{key}"] = value
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different


@contextmanager
def session_of(url, model, optimizers, parts=(), **settings):
    heard = Heard()
    session = SpotSession(SpotConfig(url=str(url), **{"every_steps": 10**6, **settings}), on_event=[heard])
    with closing(session):
        session.register("model", ModelPart(model), replicated=ModelPart.replicated)
        for number, optimizer in enumerate(optimizers):
            part = OptimizerPart(optimizer, model)
            session.register(f"optimizer-{number}", part, replicated=OptimizerPart.replicated)
        for name, part in dict(parts).items():
            session.register(name, part)
        session.resume()
        yield session, heard


def restored(url, make_optimizers):
    """The state that the next life of the run at *url* gets back."""
    model = net()
    optimizers = make_optimizers(model)
    with session_of(url, model, optimizers):
        return state_of(model, optimizers)


@contextmanager
def held_up(session):
    """Let the copying thread begin only when this ends. The memory for the first save is made before."""
    session._opened.saver.prepare()
    gate = threading.Event()
    session._opened.saver._copier.do(gate.wait)
    try:
        yield gate
    finally:
        gate.set()


def open_once_waited_for(session, gate):
    """Open *gate* a while after somebody has begun to wait for the copy."""

    def run():
        while session._opened.saver._copier._waits_since is None and not gate.is_set():
            time.sleep(0.001)
        time.sleep(HELD_UP_S)
        gate.set()

    threading.Thread(target=run, daemon=True).start()


def forward_backward(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("with_closure", [False, True, "by name"], ids=["plain", "closure", "closure by name"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_waits_until_what_it_will_change_is_copied(kind, with_closure, tmp_path):
    """
    A step behind a save does not begin to change anything before the copy is done; statistics that the forward pass
    changes were copied at once. So the save has the state as it was, for every kind of optimizer and of call.
    """
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    needs_closure = kind in ("lbfgs", "closure last")
    closure = forward_backward(model, optimizer)

    def step():
        if with_closure == "by name":
            optimizer.step(closure=closure)
        elif with_closure or needs_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    with session_of(tmp_path, model, [optimizer]) as (session, heard):
        step()
        expected = state_of(model, [optimizer])
        with held_up(session) as gate:
            session.save(1)
            open_once_waited_for(session, gate)
            step()
            assert gate.is_set()
        heard.wait(Committed, step=1)
        changed = state_of(model, [optimizer])

    assert any(not torch.equal(changed[name], value) for name, value in expected.items())
    assert_equal(restored(tmp_path, lambda model: [OPTIMIZERS[kind](model.parameters())]), expected)
    assert heard.of(Staged)[0].stall_s >= HELD_UP_S


def test_forward_and_backward_do_not_wait(tmp_path):
    """
    The closure of an optimizer runs, and so do accumulated batches without a step, while the copy has not begun.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    closure = forward_backward(model, optimizer)
    has_run = threading.Event()

    def told_closure():
        loss = closure()
        has_run.set()
        return loss

    with session_of(tmp_path, model, [optimizer]) as (session, heard):
        optimizer.step(closure)
        with held_up(session) as gate:
            session.save(1)
            closure()
            closure()
            trainer = threading.Thread(target=optimizer.step, args=(told_closure,))
            trainer.start()
            assert has_run.wait(DEADLINE_S)
            assert not gate.is_set()
            assert trainer.is_alive()
        trainer.join()
        heard.wait(Committed, step=1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_optimizers_wait_each(order, tmp_path):
    """
    Of two optimizers, whichever steps first waits; the other one finds the copy done.
    """

    def two(model):
        return [torch.optim.AdamW(model[0].parameters()), torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)]

    model = net()
    optimizers = two(model)
    forward_backward(model, optimizers[0])()
    for optimizer in optimizers:
        optimizer.step()
    with session_of(tmp_path, model, optimizers) as (session, heard):
        expected = state_of(model, optimizers)
        with held_up(session) as gate:
            session.save(1)
            open_once_waited_for(session, gate)
            for number in order:
                optimizers[number].step()
        heard.wait(Committed, step=1)

    assert_equal(restored(tmp_path, two), expected)


def test_what_no_optimizer_trains_is_copied_at_once(tmp_path):
    """
    Averaged weights, counters and anything else of the user's own may change as soon as save() returns.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    averaged = Holder({"weight": torch.full((50,), 1.0)})
    model[0].weight.requires_grad_(False)  # not trained, but who knows
    optimizer.param_groups[0]["params"].pop(0)
    with session_of(tmp_path, model, [optimizer], {"averaged": averaged}) as (session, heard):
        expected = model[0].weight.detach().clone()
        with held_up(session):
            session.save(1)
            averaged.state["weight"].fill_(2.0)
            model[0].weight.data.fill_(2.0)
        heard.wait(Committed, step=1)

    model, averaged = net(), Holder({})
    optimizer = torch.optim.AdamW([*model.parameters()][1:])
    with closing(SpotSession(SpotConfig(url=str(tmp_path), every_steps=1))) as session:
        session.register("model", ModelPart(model), replicated=ModelPart.replicated)
        session.register("optimizer-0", OptimizerPart(optimizer, model), replicated=OptimizerPart.replicated)
        session.register("averaged", averaged)
        assert session.resume() == 1
    assert torch.equal(averaged.state["weight"], torch.full((50,), 1.0))
    assert torch.equal(model[0].weight, expected)


def test_a_change_that_no_optimizer_made_is_noticed(tmp_path, caplog):
    """
    Weights that are changed behind our back, while they are copied, make that step abandoned, by name of the weight,
    and never a committed step of mixed state; from then on saves are copied at once and are whole.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    forward_backward(model, optimizer)()
    optimizer.step()
    with session_of(tmp_path, model, [optimizer]) as (session, heard), caplog.at_level(logging.WARNING):
        with held_up(session):
            session.save(1)
            with torch.no_grad():
                model[2].weight.clamp_(-1e-3, 1e-3)
        abandoned = heard.wait(SaveAbandoned, step=1)
        assert "it could not be copied: 'model/parameters/2.weight' was changed while it was copied" in abandoned.reason
        assert "From now on each save copies everything before training continues" in caplog.text

        expected = state_of(model, [optimizer])
        session.save(2)
        with torch.no_grad():
            model[2].weight.zero_()
        heard.wait(Committed, step=2)

    assert not heard.of(Committed, step=1)
    assert_equal(restored(tmp_path, lambda model: [torch.optim.AdamW(model.parameters())]), expected)


def test_a_fence_and_a_pause_wait_for_the_copy(tmp_path):
    """
    Behind fence(), and within a pause, weights may be swapped by anyone.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with session_of(tmp_path, model, [optimizer]) as (session, heard):
        for number, wait in enumerate([session.fence, session.pause(2).__enter__], start=1):
            expected = state_of(model, [optimizer])
            with held_up(session) as gate:
                session.save(number)
                open_once_waited_for(session, gate)
                wait()
                with torch.no_grad():
                    model[0].weight.add_(1.0)
            heard.wait(Committed, step=number)
    assert not heard.of(SaveAbandoned)
    assert_equal(restored(tmp_path, lambda model: [torch.optim.AdamW(model.parameters())]), expected)


@pytest.mark.parametrize("wait", ["fence", "fence of a copy that was issued", "step"])
def test_a_copy_that_hangs_ends_training_in_words(wait, monkeypatch, tmp_path):
    """Nobody waits for it for ever: no weight may change before, and no graph may be captured."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with session_of(tmp_path, model, [optimizer]) as (session, _), held_up(session):
        session.save(1)
        for module in (copier, saver):
            monkeypatch.setattr(module, "COPY_S", 0.01)
        if "issued" in wait:
            session._opened.saver._copier._issued.set()
        with pytest.raises(RuntimeError, match="the copy of a save has not ended within 0 s, so training cannot"):
            optimizer.step() if wait == "step" else session.fence(copied=True)


def test_a_notice_behind_a_save_waits_for_its_copy_and_no_longer(tmp_path):
    """
    A notice at the step that is being copied saves no second copy: it leaves once that one is stored.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with session_of(tmp_path, model, [optimizer], grace_seconds=20) as (session, heard):
        session.handle_signals()
        expected = state_of(model, [optimizer])
        with held_up(session) as gate:
            session.save(1)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: session.notice, "the notice is heard")
            threading.Timer(HELD_UP_S, gate.set).start()
            with pytest.raises(Preempted):
                session.after_step(1)
    assert len(heard.of(Staged)) == len(heard.of(Committed)) == 1
    assert_equal(restored(tmp_path, lambda model: [torch.optim.AdamW(model.parameters())]), expected)


def test_closing_hands_over_what_is_being_copied(tmp_path):
    """
    A session that is closed in the middle of a copy, after an error for example, still has it stored.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with session_of(tmp_path, model, [optimizer]) as (session, _):
        expected = state_of(model, [optimizer])
        session._opened.saver._copier.do(lambda: time.sleep(HELD_UP_S))
        session.save(1)
    until(lambda: list((tmp_path / "steps").glob("*/rank*")), "the step is committed")
    assert_equal(restored(tmp_path, lambda model: [torch.optim.AdamW(model.parameters())]), expected)


def test_a_copy_that_does_not_end_is_left_behind_and_told(tmp_path, monkeypatch, caplog):
    """
    A device that hangs holds up no end of a session.
    """
    monkeypatch.setattr(saver, "CLOSE_S", 0.05)
    model = net()
    with session_of(tmp_path, model, [torch.optim.AdamW(model.parameters())]) as (session, _), held_up(session):
        session.save(1)
        session.close()

    told = "a copy from the device does not end, so its memory is not released. Look at the device and its driver"
    assert told in caplog.text


def test_a_save_that_waits_for_earlier_ones_says_so(tmp_path, caplog):
    """
    Both buffers are in use, because the pusher stands still.
    """
    with session_of(tmp_path, net(), []) as (session, heard):
        pusher = session._opened.pusher
        os.kill(pusher.pid, signal.SIGSTOP)
        session.save(1)
        session.save(2)

        def go_on():
            until(lambda: pusher.ledger.changed._waiters, "the third save waits")
            time.sleep(HELD_UP_S)
            os.kill(pusher.pid, signal.SIGCONT)

        thread = threading.Thread(target=go_on)
        thread.start()
        session.save(3)
        thread.join()
        heard.wait(Committed, step=3)

    assert re.search(r"training waited \d+\.\d s for an earlier push\. Save less often", caplog.text)


def test_a_save_waits_no_longer_than_the_grace(tmp_path):
    """
    The caller gets the reason.
    """
    with session_of(tmp_path, net(), [], grace_seconds=0.05) as (session, _):
        os.kill(session._opened.pusher.pid, signal.SIGSTOP)
        session.save(1)
        session.save(2)
        with pytest.raises(StoreError, match="earlier steps are still being pushed, and hold all memory for saves"):
            session.save(3)
        os.kill(session._opened.pusher.pid, signal.SIGCONT)


def test_a_pusher_that_dies_during_the_copy_takes_nothing_with_it(tmp_path):
    """
    What is still being copied goes to a new pusher process, and is stored.
    """
    model = net()
    with session_of(tmp_path, model, [torch.optim.AdamW(model.parameters())]) as (session, heard):
        with held_up(session):
            session.save(1)
            os.kill(pusher := pusher_pid(session), signal.SIGKILL)
            until_end_known(session, pusher)
        heard.wait(Committed, step=1)
    assert not heard.of(SaveAbandoned)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler meets its own
def test_a_compiled_step_is_compiled_once_and_waits(tmp_path):
    """
    The step of an optimizer may be compiled. The compiler leaves out what a session does in it: it is neither traced,
    which warns, nor compiled again when a save begins or ends.
    """
    torch._dynamo.reset()
    graphs = []
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    compiled = torch.compile(optimizer.step, backend=lambda graph, _: graphs.append(graph) or graph.forward)

    def step():
        forward_backward(model, optimizer)()
        compiled()

    with session_of(tmp_path, model, [optimizer]) as (session, heard):
        step()
        step()  # the state of the optimizer exists from here on
        for number in range(1, 4):
            expected = state_of(model, [optimizer])
            with held_up(session) as gate:
                session.save(number)
                open_once_waited_for(session, gate)
                step()
                assert gate.is_set()
            heard.wait(Committed, step=number)

    assert len(graphs) == 1
    assert_equal(
        restored(tmp_path, lambda model: [torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)]),
        expected,
    )


def test_a_session_that_is_closed_lets_go_of_all_optimizers(tmp_path):
    """
    Nothing of a session stays in torch: other trainings of the process do not pay for it.
    """
    before = len(_global_optimizer_pre_hooks)
    with session_of(tmp_path, net(), []):
        assert len(_global_optimizer_pre_hooks) == before + 1
    assert len(_global_optimizer_pre_hooks) == before


def test_the_first_buffer_is_made_behind_the_first_step(tmp_path):
    """
    Its pages are there before anything is saved, and the save uses them.
    """
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    forward_backward(model, optimizer)()
    optimizer.step()
    with session_of(tmp_path, model, [optimizer]) as (session, heard):
        assert not session._opened.saver._buffers.active.buffers
        session.after_step(1)
        (buffer,) = until(lambda: session._opened.saver._buffers.active.buffers, "the buffer is made")
        session.save(2)
        heard.wait(Committed, step=2)
        assert session._opened.saver._buffers.active.buffers == [buffer]


def test_a_first_buffer_that_is_never_made_is_not_waited_for_without_a_limit(tmp_path, monkeypatch, caplog):
    """A save fails with the reason, and a pause goes on with a warning."""
    monkeypatch.setattr(saver, "PREPARE_S", 0.05)
    model, gate = net(), threading.Event()
    with session_of(tmp_path, model, [], grace_seconds=0.1) as (session, heard):
        session._opened.saver._copier.do(gate.wait)
        session.after_step(1)
        with pytest.raises(StoreError, match="the memory for saves was not made in time"):
            session.save(1)
        with session.pause(1):
            assert "a notice in this pause cannot save step 1: the memory for saves was not made" in caplog.text
            session.keep(1)
        told = "its state was not copied when the step was done, because no memory was free for it"
        assert heard.wait(KeepFailed, step=1).reason == told
        gate.set()


def test_memory_is_bounded_by_what_is_given(tmp_path):
    """
    With room for one state only, a periodic save during a push is deferred, and says so; with too little room for one,
    the training ends at its first step with the number that would do.
    """
    states = [Holder({"weight": torch.zeros(1000)}) for _ in range(2)]
    room = 1_200_000
    for url, part, buffer_bytes in [("one", states[0], room), ("none", states[1], 4000)]:
        heard = Heard()
        config = SpotConfig(url=str(tmp_path / url), every_steps=2, buffer_bytes=buffer_bytes)
        with closing(SpotSession(config, on_event=[heard])) as session:
            session.register("part", part)
            session.resume()
            if url == "none":
                told = r"buffer_bytes=4000 is too small for the state of this rank: give at least \d+"
                with pytest.raises(ConfigError, match=told):
                    session.after_step(1)
                continue
            until(lambda: session._opened.pusher.pid, "the pusher runs")
            os.kill(session._opened.pusher.pid, signal.SIGSTOP)
            session.after_step(1)
            session.after_step(2)
            session.after_step(4)
            assert [event.step for event in heard.of(SaveDeferred)] == [4]
            assert not session._opened.saver.has_room
            os.kill(session._opened.pusher.pid, signal.SIGCONT)
            until_idle(session)
            session.after_step(5)
            heard.wait(Committed, step=5)
            assert len(session._opened.saver._buffers.active.buffers) == 1


@pytest.fixture
def slow_copies(monkeypatch):
    """Let every copy take a while."""
    issue = Snapshot.issue

    def slowly(snapshot):
        time.sleep(HELD_UP_S / 3)
        issue(snapshot)

    monkeypatch.setattr(Snapshot, "issue", slowly)


class Net(LightningModule):
    def __init__(self, *, manual):
        super().__init__()
        self.net = net()
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(24, 8)), batch_size=4)


class Recorder(Callback):
    """Keeps a copy of the state behind each step, and prunes weights when an epoch ends."""

    def __init__(self):
        self.states = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # Of accumulated batches the first behind the step: the others change statistics.
        self.states.setdefault(trainer.global_step, state_of(pl_module, trainer.optimizers))

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.net[0].weight.data[0].zero_()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_lightning_saves_the_state_of_the_step(manual, accumulate, tmp_path, slow_copies):
    """
    Every step of a fit, with automatic optimization (whose forward pass runs in a closure) and manual, has in the store
    what it had when it ended, also where the end of an epoch changes weights right behind it.
    """
    if manual and accumulate > 1:
        pytest.skip("Lightning has no accumulation in manual optimization")
    heard, recorder = Heard(), Recorder()
    spot = SpotCheckpoint(str(tmp_path), every_steps=1, keep_last=100, on_event=[heard])
    wait = WaitForPush(spot)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[wait, recorder, spot],
        default_root_dir=tmp_path,
        **quiet,
    )
    trainer.fit(Net(manual=manual))

    steps = 12 // accumulate
    assert sorted(event.step for event in heard.of(Committed)) == [*range(1, steps + 1)]
    for step in range(1, steps + 1):
        model = Net(manual=manual)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        load_parts(tmp_path, step, model, optimizer)
        assert_equal(state_of(model, [optimizer]), recorder.states[step])


class WaitForPush(Callback):
    """Lets each push end before the next step, so that no save is deferred."""

    def __init__(self, spot):
        self._spot = spot

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        until_idle(self._spot._fit.session)


def load_parts(url, step, model, optimizer):
    """Give model and optimizer what is stored of *step*: the newer ones are taken away."""
    until_pushers_end()  # they still write the event log of an ended session
    work = url.parent / f"{url.name}-{step}"
    shutil.copytree(url, work)
    for folder in (work / "steps").iterdir():
        if int(folder.name.split("-")[0]) != step:
            shutil.rmtree(folder)
    ranks = SingleRank()
    loaded = load_newest(LocalStore(str(work)), None, str(work), Job(ranks, ranks.open_board()), EventBus())
    name = "model" if "model" in loaded.state else "model-0"
    ModelPart(model).load_state_dict(loaded.state[name])
    OptimizerPart(optimizer, model).load_state_dict(loaded.state["optimizer-0"])
    shutil.rmtree(work)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate_saves_the_state_of_the_step(accumulate, tmp_path, slow_copies):
    """
    The same for a loop of Accelerate, which swaps weights behind the last batch of an epoch to validate.
    """
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    heard, states = Heard(), {}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    with SpotHook(accelerator, str(tmp_path), every_steps=1, keep_last=100, on_event=[heard]) as spot:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(torch.randn(24, 8)), batch_size=4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        spot.resume()
        for _ in spot.epochs(2):
            for (batch,) in spot.batches(loader):
                with accelerator.accumulate(model):
                    loss = model(batch).square().mean()
                    accelerator.backward(loss)
                    optimizer.step()
                    until_idle(spot._session)  # so that no save is deferred
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    states[spot.progress.step + 1] = state_of(model, [optimizer.optimizer])
                spot.after_step()
            model[0].weight.data.add_(1.0)
            model[0].weight.data.sub_(1.0)
    steps = 12 // accumulate
    assert sorted(event.step for event in heard.of(Committed)) == [*range(1, steps + 1)]
    for step in range(1, steps + 1):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        load_parts(tmp_path, step, model, optimizer)
        assert_equal(state_of(model, [optimizer]), states[step])
