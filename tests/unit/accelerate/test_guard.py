"""Loops that a resume could not repeat: SpotHook names them, or finds and restores the lost part by itself."""

from __future__ import annotations

import itertools
import warnings
from contextlib import contextmanager

import pytest
import torch
from accelerate.utils import ProjectConfiguration
from loops import Life, Numbers, assert_exact, live
from torch import nn
from torch.utils.data import DataLoader

from spot_plugins.accelerate import Progress, SpotHook
from spot_plugins.config import SpotConfig
from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError
from spot_plugins.session import SpotSession


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/run"


@contextmanager
def training(url, end=None, loaders=1, prepared=1, **settings):
    """Open a hook, and yield the life, the hook, nets, optimizers and loaders."""
    life = Life(url, None, end, **settings)
    with life.hook() as spot:
        nets = [life.net() for _ in range(2)]
        optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in nets]
        made = [elastic_loader(Numbers(20), batch_size=2, seed=3) for _ in range(loaders)]
        done = life.accelerator.prepare(*nets, *optimizers[:prepared], *made)
        yield life, spot, done[:2], [*done[2 : 2 + prepared], *optimizers[prepared:]], done[2 + prepared :]


def step_on(life, net, optimizer, x):
    life.accelerator.backward(net(x).square().mean())
    optimizer.step()
    optimizer.zero_grad()


def loop(url, body, iterate=lambda spot, loader: spot.batches(loader), number=6, **settings):
    """Run *body* for some batches of a loop."""
    with training(url, **settings) as (life, spot, nets, optimizers, loaders):
        spot.resume()
        for count, batch in enumerate(iterate(spot, loaders[0])):
            if count == number:
                break
            body(life, spot, nets, optimizers, batch[-1])
    return life


def test_after_step_before_the_optimizer_is_told(url):
    """
    The state is that of the batch before, while the batch that was handed out counts as trained.
    """

    def body(life, spot, nets, optimizers, x):
        life.accelerator.backward(nets[0](x).sum())
        spot.after_step()
        optimizers[0].step()

    with pytest.warns(UserWarning, match=r"called before optimizer\.step\(\)"):
        loop(url, body)


def test_a_report_within_an_inner_loop_is_told(url):
    """
    The rest of the inner loop would be left out.
    """

    def body(life, spot, nets, optimizers, x):
        for _ in range(2):
            step_on(life, nets[0], optimizers[0], x)
            spot.after_step()

    with pytest.warns(UserWarning, match="handed out no batch.*call after_step.. once, after the last time"):
        loop(url, body)


def ahead(spot, loader):
    """Fetch a batch before the one before it is trained on."""
    batches = spot.batches(loader)
    held = next(batches)
    for batch in batches:
        yield held
        held = batch


def test_a_loop_that_fetches_ahead_is_told(url):
    """
    The batch that is held counts as trained.
    """
    with pytest.warns(
        UserWarning, match="two batches were handed out before the first step, .* the loop fetches a batch ahead"
    ):
        loop(url, stepping, ahead)


def stepping(life, spot, nets, optimizers, x):
    step_on(life, nets[0], optimizers[0], x)
    spot.after_step()


@pytest.mark.parametrize(
    ("iterate", "words"),
    [
        (
            lambda spot, loader: itertools.cycle(spot.batches(loader)),
            r"itertools\.cycle\(\) repeats the batches that spot\.batches\(\) yields, .*repeat=True",
        ),
        (
            lambda spot, loader: itertools.islice(spot.batches(loader), 4),
            r"itertools\.islice\(\) counts the batches of spot\.batches\(\) .*limit=",
        ),
        (
            lambda spot, loader: zip(range(99), spot.batches(loader), strict=False),
            "pairs the batches of .* with a range_iterator",
        ),
    ],
    ids=["cycle", "islice", "zip"],
)
def test_iterators_that_a_resume_cannot_repeat_are_told(iterate, words, url):
    """
    At their first batch.
    """
    with pytest.warns(UserWarning, match=words):
        loop(
            url,
            lambda life, spot, nets, optimizers, x: stepping(
                life, spot, nets, optimizers, x[-1] if isinstance(x, list) else x
            ),
            iterate,
            number=2,
        )


def test_enumerate_is_told_where_it_counts_a_rest(url):
    """
    In a resumed epoch. With batches.start it counts on.
    """

    def program(count):
        def run(life):
            with life.hook() as spot:
                net = life.net()
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
                loader = elastic_loader(Numbers(20), batch_size=2)
                net, optimizer, loader = life.accelerator.prepare(net, optimizer, loader)
                spot.resume()
                for _ in spot.epochs(1):
                    batches = spot.batches(loader)
                    assert batches.start + len(batches) == 10
                    for number, (_, x) in count(batches):
                        life.point(number, key=spot.progress.step)
                        assert len(batches) == 10 - batches.start
                        step_on(life, net, optimizer, x)
                        spot.after_step()
                        life.stored()

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live(url, program(enumerate), ("kill", 4))
    with pytest.warns(UserWarning, match="enumerate.. counts the batches of this resumed epoch from 0, and 3 came"):
        live(url, program(enumerate), ("kill", 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace, _ = live(url, program(lambda batches: enumerate(batches, batches.start)))
    assert {step: record[0] for step, record in trace.items()} == {step: step for step in range(6, 10)}


def test_a_loop_that_repeats_the_rest_of_a_resumed_epoch_is_told(url):
    """
    It keeps the batches of a short loader beside a longer one. After a resume it has the last ones alone.
    """

    def program(life):
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            loaders = [elastic_loader(Numbers(length), batch_size=2) for length in (20, 8)]
            net, optimizer, long, short = life.accelerator.prepare(net, optimizer, *loaders)
            spot.resume()
            for _ in spot.epochs(1):
                rest, held = spot.batches(short), []
                for number, (_, x) in enumerate(spot.batches(long), spot.progress.step):
                    if (batch := next(rest, None)) is not None:
                        held.append(batch)
                    life.point(number, key=number)
                    step_on(life, net, optimizer, x + held[number % len(held)][1])
                    spot.after_step()
                    life.stored()

    live(url, program, ("kill", 3))
    told = "a loader that was resumed within its epoch has ended, and the loop trains on with the batches of another"
    with pytest.warns(UserWarning, match=told + r".*write spot\.batches\(loader, repeat=True\) instead"):
        live(url, program)


def test_an_optimizer_that_is_not_prepared_is_named(url):
    """
    Its state would be lost.
    """

    def body(life, spot, nets, optimizers, x):
        step_on(life, nets[0], optimizers[0], x)
        nets[1](x).sum().backward()
        optimizers[1].step()
        spot.after_step()

    told = r"not saved, although this training changes it: optimizer Adam `optimizers\[1\]`.*accelerator\.prepare\(\)"
    with pytest.warns(UserWarning, match=told):
        loop(url, body)


def test_what_the_hook_has_named_is_named_once(url):
    """
    The search for things that are not saved leaves out a loader and schedulers that the hook has warned of.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with training(url, loaders=2) as (life, spot, nets, optimizers, loaders):
            twins = [torch.optim.lr_scheduler.StepLR(optimizers[0].optimizer, size) for size in (2, 3)]
            spot.resume()
            late = torch.optim.lr_scheduler.ExponentialLR(optimizers[0].optimizer, 0.9)
            for (_, x), _ in zip(spot.batches(loaders[0]), loaders[1], strict=True):
                step_on(life, nets[0], optimizers[0], x)
                for each in (*twins, late):
                    each.step()
                spot.after_step()
    told = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    told = [each for each in told if "saved" in each or "spot.resume()" in each]
    assert sorted(each.split(" ")[0] for each in told) == ["ExponentialLR", "StepLR", "StepLR", "a"]


def test_an_optimizer_in_another_one_that_is_saved_is_not_named(url):
    """
    Its state is saved with the other.
    """

    class Outer(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, {})
            self.param_groups = inner.param_groups

        def step(self, closure=None):
            self.inner.step()

        def state_dict(self):
            return self.inner.state_dict()

        def load_state_dict(self, state):
            self.inner.load_state_dict(state)
            self.param_groups = self.inner.param_groups

    life = Life(url, None)
    with warnings.catch_warnings(), life.hook() as spot:
        warnings.simplefilter("error")
        net = life.net()
        loader = elastic_loader(Numbers(20), batch_size=2)
        net, optimizer, loader = life.accelerator.prepare(
            net, Outer(torch.optim.Adam(net.parameters(), lr=0.01)), loader
        )
        spot.resume()
        for _, x in spot.batches(loader):
            step_on(life, net, optimizer, x)
            spot.after_step()


def test_gradients_that_wait_in_one_of_two_optimizers_are_told(url):
    """
    A save after a step of the other would lose them; stepped=False says that there is more to come.
    """

    def body(spot, say):
        count = itertools.count(1)

        def run(life, spot, nets, optimizers, x):
            step_on(life, nets[0], optimizers[0], x)
            life.accelerator.backward(nets[1](x).sum())
            is_last = next(count) % 3 == 0
            if is_last:
                optimizers[1].step()
                optimizers[1].zero_grad()
            spot.after_step(**({"stepped": is_last} if say else {}))

        return run

    with pytest.warns(UserWarning, match="gathered gradients over several batches.*stepped=False"):
        loop(url, body(None, say=False), prepared=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loop(url + "2", body(None, say=True), prepared=2).spot.progress.step == 2


def test_steps_that_torch_does_not_know_of_are_told_and_can_be_named(url):
    """
    Such as those of a CUDA graph. Nothing else would be saved.
    """

    def by_hand(stepped):
        def body(life, spot, nets, optimizers, x):
            with torch.no_grad():
                for parameter in nets[0].parameters():
                    parameter.mul_(0.9)
            spot.after_step(stepped=stepped)

        return body

    def endlessly(spot, loader):
        return spot.batches(loader, repeat=True)

    with pytest.warns(UserWarning, match=r"no optimizer has stepped in 64 calls.*after_step\(stepped=True\)"):
        assert loop(url, by_hand(None), endlessly, number=70).spot.progress.step == 0
    assert loop(url + "2", by_hand(True)).spot.progress.step == 6


def test_a_loop_that_reports_rarely_is_told(url):
    """
    A notice has to wait.
    """
    with pytest.warns(UserWarning, match="stepped on 32 batches since the last"):
        loop(
            url,
            lambda life, spot, nets, optimizers, x: step_on(life, nets[0], optimizers[0], x),
            lambda spot, loader: (spot.after_step(), spot.batches(loader, repeat=True))[1],
            number=40,
        )


def test_a_loop_without_any_call_is_told(url):
    """
    It takes its batches past the hook and reports nothing.
    """
    with training(url) as (life, spot, nets, optimizers, _):
        spot.resume()
        for _ in range(99):
            step_on(life, nets[0], optimizers[0], torch.ones(4))
        with pytest.warns(UserWarning, match="100 steps, and neither"):
            step_on(life, nets[0], optimizers[0], torch.ones(4))


def test_a_prepared_loader_beside_batches_is_named(url):
    """
    Its position is not saved.
    """
    with training(url, loaders=2) as (life, spot, nets, optimizers, loaders):
        spot.resume()
        pairs = zip(spot.batches(loaders[0]), loaders[1], strict=True)
        (_, x), _ = next(pairs)
        with pytest.warns(UserWarning, match=r"in use .* without spot\.batches.*DataLoaderShard `loaders\[1\]` is not"):
            stepping(life, spot, nets, optimizers, x)
        for (_, x), _ in pairs:
            stepping(life, spot, nets, optimizers, x)


# Schedulers that nobody prepared


def scheduled(life, register=lambda life, scheduler: None):
    with life.hook() as spot:
        net = life.net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        loader = elastic_loader(Numbers(20), batch_size=2, seed=3)
        net, optimizer, loader = life.accelerator.prepare(net, optimizer, loader)
        spot.resume()
        for _ in spot.epochs(2):
            for _, x in spot.batches(loader):
                step_on(life, net, optimizer, x)
                scheduler.step()
                life.point(scheduler.get_last_lr())
                spot.after_step()
                life.stored()


@pytest.mark.parametrize("end", [("kill", 6), ("term", 12)], ids=str)
def test_a_scheduler_that_is_not_prepared_is_found_and_restored(end, tmp_path):
    """
    torch knows that one is bound to the optimizer.
    """
    assert_exact(scheduled, tmp_path, end)


def test_two_schedulers_that_cannot_be_told_apart_are_named(url):
    """
    They would be restored in each other's place.
    """
    with training(url) as (_, spot, _, optimizers, _):
        kept = [torch.optim.lr_scheduler.StepLR(optimizers[0].optimizer, size) for size in (2, 3)]
        told = "StepLR is not prepared and cannot be saved, so the learning rate begins anew with each resume: another "
        with pytest.warns(UserWarning, match=told + r"one of the same class.*accelerator\.prepare"):
            spot.resume()
        assert len(kept) == 2


def test_a_scheduler_that_is_made_too_late_is_named(url):
    """
    It has set the learning rate anew.
    """
    with training(url) as (life, spot, nets, optimizers, loaders):
        spot.resume()
        late = torch.optim.lr_scheduler.StepLR(optimizers[0].optimizer, 2)
        _, x = next(spot.batches(loaders[0]))
        step_on(life, nets[0], optimizers[0], x)
        with pytest.warns(UserWarning, match="StepLR was made after spot.resume"):
            spot.after_step()
        del late


# Pauses, save_state, two hooks, peek, fence


def test_a_validation_that_is_left_by_break_changes_nothing(url):
    """
    Accelerate would believe that its loader is still in use, and not end a window with the epoch.
    """
    with training(url, gradient_accumulation_steps=4) as (life, spot, nets, optimizers, loaders):
        validation = life.accelerator.prepare(DataLoader(Numbers(8), batch_size=2))
        spot.resume()
        seen = []
        for number, (_, x) in enumerate(spot.batches(loaders[0])):
            with life.accelerator.accumulate(nets[0]):
                step_on(life, nets[0], optimizers[0], x)
            spot.after_step()
            seen.append(life.accelerator.sync_gradients)
            if number == 3:
                with spot.pause():
                    left = iter(validation)
                    next(left)
        assert seen == [False, False, False, True, False, False, False, True, False, True]


def test_save_state_continues_its_numbers(tmp_path, url):
    """
    Also if folders from after the saved step are there already.
    """

    def program(life):
        with life.hook() as spot:
            net = life.net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            loader = elastic_loader(Numbers(20), batch_size=2)
            net, optimizer, loader = life.accelerator.prepare(net, optimizer, loader)
            spot.resume()
            for _ in spot.epochs(1):
                for _, x in spot.batches(loader):
                    step_on(life, net, optimizer, x)
                    life.accelerator.save_state()
                    life.point()
                    spot.after_step()
                    life.stored()

    project = ProjectConfiguration(project_dir=str(tmp_path / "p"), automatic_checkpoint_naming=True)
    live(url, program, ("kill", 4), project_config=project)
    project = ProjectConfiguration(project_dir=str(tmp_path / "p"), automatic_checkpoint_naming=True)
    live(url, program, project_config=project)
    names = sorted(path.name for path in (tmp_path / "p" / "checkpoints").iterdir())
    assert len(names) == 11  # the fourth was saved twice


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("hook", "another SpotHook is open in this process, and its `with` block has not ended"),
        ("session", "SIGTERM is a notice to another SpotHook, SpotLoop, SpotCheckpoint or SpotSession of this process"),
    ],
    ids=["hook", "session"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_two_at_once_are_refused(other, told, is_first, url):
    """
    Both would count the same steps and leave at the same signal. What was open stays open, and can be closed.
    """
    life = Life(url, None)
    hook = life.hook()
    another = SpotHook(life.accelerator, url + "2", every_steps=1)
    if other == "session":
        another = SpotSession(SpotConfig(url=url + "2", every_steps=1))
    first, second = (hook, another) if is_first else (another, hook)
    with first:
        if isinstance(first, SpotSession):
            first.handle_signals()
        with pytest.raises(ConfigError, match=told):
            second.__enter__().handle_signals()
        second.close() if isinstance(second, SpotSession) else None
    with SpotHook(life.accelerator, url + "3", every_steps=1):
        pass


def test_peek_finds_the_place_before_anything_is_prepared(url):
    """
    It is the one from which resume() continues.
    """
    with Life(url, None).hook() as spot:
        assert spot.peek() == Progress(step=0, epoch=0, batches=0, resumed=False)
    loop(url, stepping)
    life = Life(url, None)
    with life.hook() as spot:
        assert spot.peek() == Progress(step=6, epoch=0, batches=0, resumed=True)
        assert spot.resumed_from is None
    with training(url) as (_, spot, _, _, _):
        found = spot.peek()
        assert spot.resume() == Progress(step=6, epoch=0, batches=6, resumed=True)
        assert found.step == 6
        with pytest.raises(RuntimeError, match="peek"):
            spot.peek()


def test_a_step_that_peek_found_and_that_is_damaged_is_named(url, tmp_path):
    """
    Peek reads the place only. The resume reads everything, and continues from the step before.
    """
    loop(url, stepping, every_steps=3)
    [damaged] = (tmp_path / "run/steps").glob("0000000006*/*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with training(url) as (_, spot, _, _, _):
        assert spot.peek().step == 6
        told = "peek.. found step 6, which is damaged, so the training continues from step 3"
        with pytest.warns(UserWarning, match=told):
            assert spot.resume().step == 3


def test_fence_waits_for_the_copy(url):
    """
    Weights may be swapped after it.
    """
    with training(url) as (life, spot, nets, optimizers, loaders):
        spot.resume()
        _, x = next(spot.batches(loaders[0]))
        stepping(life, spot, nets, optimizers, x)
        spot.fence()
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.zeros(37), nets[0].parameters())


@pytest.mark.parametrize("arguments", [{"limit": 3, "repeat": True}, {"limit": -1}])
def test_arguments_of_batches_are_checked(arguments, url):
    """
    At the call.
    """
    with training(url) as (_, spot, _, _, loaders):
        spot.resume()
        with pytest.raises(ConfigError, match=r"repeat=True exclude each other|must not be negative"):
            spot.batches(loaders[0], **arguments)
        with pytest.raises(ConfigError, match="max_steps=None: the training would never end"):
            spot.epochs()


def test_a_loader_without_batches_is_not_repeated_for_ever(url):
    """
    It would never yield one.
    """
    with training(url) as (life, spot, _, _, _):
        empty = life.accelerator.prepare(torch.utils.data.DataLoader([]))
        spot.resume()
        with pytest.raises(ConfigError, match="a loader without batches cannot be repeated"):
            next(spot.batches(empty, repeat=True))
