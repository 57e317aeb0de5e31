"""The promises of SpotLoop inside one process. Several ranks and real preemptions are in tests/drills."""

from __future__ import annotations

import logging
import re
import warnings

import pytest
import torch
from hearing import until, until_idle
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader
from training_pieces import Points

from spot_plugins import load_weights
from spot_plugins.bare import Progress, SpotLoop
from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError, IncompatibleCheckpointError

BATCHES = 5


class StoppedError(Exception):
    """Ends a training in the middle, as a crash does."""


def make_loader(replicas=1, samples=2 * BATCHES):
    """Return a loader of 5 batches for this process, one of so many *replicas*."""
    loader = elastic_loader(Points(samples * replicas), batch_size=2, seed=3)
    loader.sampler.bind(num_replicas=replicas, rank=0)
    return loader


class Life:
    """One process life of a small training at *url*."""

    def __init__(self, url, *, loader=None, has_schedule=False, **settings):
        torch.manual_seed(1)
        self.net = nn.Linear(6, 3)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.schedules = [torch.optim.lr_scheduler.StepLR(self.optimizer, 9)] if has_schedule else []
        self.loader = loader or make_loader()
        self.url = url
        self.spot = SpotLoop(url, **{"every_steps": 1, **settings})

    def begin(self):
        """Register everything, in an open run."""
        self.spot.register_model(self.net, self.optimizer, self.schedules)
        self.spot.register_loader(self.loader)
        return self.spot

    def run(self, epochs=1, *, stop_at=None, accumulates=True):
        """Train, and crash after step *stop_at* once it is stored. Return the batches of each step."""
        sizes = [0]
        try:
            with self.spot:
                spot = self.begin()
                spot.resume()
                for _ in spot.epochs(epochs):
                    for _, x, y in spot.batches(self.loader):
                        nn.functional.cross_entropy(self.net(x), y).backward()
                        sizes[-1] += 1
                        if not accumulates or spot.sync_gradients:
                            self.optimizer.step()
                            self.optimizer.zero_grad()
                            sizes.append(0)
                        spot.after_step()
                        if stop_at is not None and sizes[-1] == 0:  # else a later save may be put off
                            until(lambda: spot.last_committed_step == spot.progress.step, "the step is committed")
                            until_idle(spot._session)  # or the next save might be put off
                            if spot.progress.step == stop_at:
                                raise StoppedError
        except StoppedError:
            pass
        return [size for size in sizes if size]


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/run"


def test_the_last_batch_of_an_epoch_ends_a_step(url):
    """5 batches by 2 are windows of 2, 2 and 1 in each epoch, also after a crash within a window."""
    life = Life(url, gradient_accumulation_steps=2)
    assert life.run(2, stop_at=2) == [2, 2]

    life = Life(url, gradient_accumulation_steps=2)
    assert life.run(2) == [1, 2, 2, 1]
    assert life.spot.progress == Progress(step=6, epoch=2, batches=0, resumed=True)


def test_the_logging_of_python_gets_the_figures_of_the_run(url, caplog):
    """A line for each stored step, with those that a crash has cost. Without the level INFO nothing is counted."""
    with caplog.at_level(logging.INFO, "spot_plugins"):
        Life(url).run(stop_at=2)
        Life(url).run()
    lines = [each.getMessage() for each in caplog.records if each.name == "spot_plugins.monitor.scalars"]
    found = [re.fullmatch(r"step (\d) is stored: spot/goodput=(\S+), spot/stall_s=\S+, (.*)", line) for line in lines]
    steps = [int(each[1]) for each in found]
    assert steps == sorted(set(steps))
    assert steps[:2] == [1, 2]
    assert steps[-1] == BATCHES
    assert all(0 < float(each[2]) < 1 for each in found)
    assert {each[3] for each in found} == {"spot/lost_steps=0, spot/interruptions=0"}

    caplog.clear()
    Life(f"{url}-quiet").run(stop_at=2)
    assert not [each for each in caplog.records if each.name == "spot_plugins.monitor.scalars"]


def test_a_limit_ends_a_step_too(url):
    """The last of the batches that the loop wants ends a window."""
    life = Life(url, gradient_accumulation_steps=2)
    with life.spot:
        spot = life.begin()
        spot.resume()
        ends = []
        for _ in spot.epochs(1):
            for _, x, _ in spot.batches(life.loader, limit=3):
                ends.append(spot.sync_gradients)
                life.net(x).sum().backward()
                if ends[-1]:
                    life.optimizer.step()
                    life.optimizer.zero_grad()
                spot.after_step()
    assert ends == [False, True, True]


def test_a_step_keeps_its_batches_on_other_replicas(url, caplog):
    """2 replicas with one batch each, then 1 that takes two, and 2 again. A line says so."""
    assert Life(url, loader=make_loader(2, samples=20)).run(stop_at=4) == [1, 1, 1, 1]

    one = Life(url, loader=make_loader(1, samples=40))
    assert one.run(stop_at=7) == [2, 2, 2]
    assert one.spot.gradient_accumulation_steps == 2

    two = Life(url, loader=make_loader(2, samples=20))
    assert two.run() == [1, 1, 1]
    said = "gradient_accumulation_steps=2 on 1 processes: an optimizer step is made of 2 batches, as before"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize(
    ("settings", "accumulates", "replicas", "told"),
    [
        ({}, True, 3, "an optimizer step is made of 3 batches now instead of 2, which do not divide over 3 processes"),
        (
            {},
            False,
            1,
            "made of 1 batches now instead of 2, because the loop does not accumulate gradients by itself. Let "
            "optimizers step `if spot.sync_gradients:`, with gradients of loss / spot.gradient_accumulation_steps, "
            "and accumulation makes up for another number of processes",
        ),
        ({"elastic_batch": "scale"}, True, 1, None),
    ],
    ids=["not divisible", "does not accumulate", "scale"],
)
def test_a_step_of_other_batches_is_named(settings, accumulates, replicas, told, url):
    """A warning says that accumulation cannot make up for the replicas. A step that may scale is not named."""
    Life(url, loader=make_loader(2, samples=30), **settings).run(stop_at=3, accumulates=accumulates)

    life = Life(url, loader=make_loader(replicas, samples=60 // replicas), **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sizes = life.run(accumulates=accumulates)

    assert set(sizes) == {1}
    said = [str(each.message) for each in caught if "optimizer step is made of" in str(each.message)]
    assert len(said) == (told is not None)
    assert all(told in text for text in said)


@pytest.mark.parametrize(
    ("settings", "replicas", "has_schedule", "is_named"),
    [
        ({}, 3, True, True),
        ({"elastic_batch": "scale"}, 1, True, True),
        ({}, 1, True, False),
        ({"elastic_batch": "scale"}, 1, False, False),
    ],
    ids=["not divisible", "scale", "kept", "no schedule"],
)
def test_a_schedule_whose_steps_are_of_other_batches_is_named(settings, replicas, has_schedule, is_named, url):
    """Nothing makes up for them, so that it ends at another sample."""
    life = Life(url, loader=make_loader(2, samples=30), has_schedule=has_schedule, **settings)
    life.run(stop_at=3)

    life = Life(url, loader=make_loader(replicas, samples=60 // replicas), has_schedule=has_schedule, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        life.run()

    told = (
        f"a step of the optimizer is {replicas} batches now instead of 2, and a scheduler makes a step per call and "
        f"not per sample. A schedule by steps of the optimizer ends at another sample than before"
    )
    assert [str(each.message) for each in caught if "makes a step per call" in str(each.message)] == [told] * is_named


def test_a_program_that_sets_another_accumulation_gets_it(url, caplog):
    """The setting of the program counts, not that of the checkpoint. A line names the difference."""
    Life(url).run(stop_at=2)

    life = Life(url, gradient_accumulation_steps=3)

    assert life.run() == [3]
    assert "gradient_accumulation_steps=3 is used from now on, not the checkpoint's 1" in caplog.text


def test_a_step_that_the_scaler_leaves_out_counts(url):
    """An overflow makes a step, so the batch is not trained on again, and a resume has the scale of after it."""
    life = Life(url)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with life.spot:
        spot = life.begin()
        spot.register("scaler", scaler)
        spot.resume()
        for _ in spot.epochs(1):
            for number, (_, x, _) in enumerate(spot.batches(life.loader)):
                scaler.scale(life.net(x).sum() * (float("inf") if number == 1 else 1.0)).backward()
                scaler.step(life.optimizer)
                scaler.update()
                life.optimizer.zero_grad()
                spot.after_step()
        assert spot.progress.step == BATCHES
    assert scaler.get_scale() == 2.0

    again, fresh = Life(url), torch.amp.GradScaler("cpu", init_scale=4.0)
    with again.spot:
        again.begin().register("scaler", fresh)
        assert again.spot.resume().step == BATCHES
        assert fresh.get_scale() == 2.0


def test_several_models_are_registered_one_by_one(url, tmp_path):
    """Each keeps its optimizers and schedulers, and is found by its number."""

    def make(lr):
        nets = [nn.Linear(6, 3), nn.Linear(6, 3)]
        optimizers = [torch.optim.SGD(net.parameters(), lr=lr) for net in nets]
        schedulers = [torch.optim.lr_scheduler.StepLR(each, 1) for each in optimizers]
        return list(zip(nets, optimizers, schedulers, strict=True))

    first, second = make(0.1), make(0.2)
    with SpotLoop(url, every_steps=1) as spot:
        for net, optimizer, scheduler in first:
            spot.register_model(net, [optimizer], [scheduler])
        spot.resume()
        for net, optimizer, scheduler in first:
            net(torch.ones(6)).sum().backward()
            optimizer.step()
            scheduler.step()
        spot.after_step()
    with SpotLoop(url, every_steps=1) as spot:
        for net, optimizer, scheduler in second:
            spot.register_model(net, optimizer, scheduler)
        assert spot.resume().step == 1

    for (net, _, _), (same, optimizer, scheduler) in zip(first, second, strict=True):
        assert torch.equal(net.weight, same.weight)
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]] == [pytest.approx(0.01)]
    assert torch.equal(load_weights(url, part="model-1")["weight"], first[1][0].weight)


def test_a_list_of_batches_has_a_position(url):
    """Any iterable that can be read again will do. The batches that were trained on are read again."""
    batches = list(make_loader())
    assert Life(url, loader=batches).run(stop_at=2) == [1, 1]
    with pytest.warns(UserWarning, match="fetching 2 batches again"):
        assert Life(url, loader=batches).run() == [1, 1, 1]


@pytest.mark.parametrize("is_variable", [False, True])
def test_the_batches_that_were_trained_on_are_skipped_if_the_setting_says_so(is_variable, url, monkeypatch):
    """As an argument and as a variable. No sample is made that was trained on."""
    assert Life(url, loader=DataLoader(Points(10), batch_size=2)).run(stop_at=3) == [1, 1, 1]
    if is_variable:
        monkeypatch.setenv("SPOT_FAST_FORWARD", "skip")
    loader = DataLoader(Points(10), batch_size=2)
    life = Life(url, loader=loader, **({} if is_variable else {"fast_forward": "skip"}))

    with pytest.warns(UserWarning, match="passing over 3 batches without fetching them"):
        assert life.run() == [1, 1]

    assert loader.dataset.drawn == {"num": 4}


def test_fewer_loaders_than_were_trained_on_are_refused(url):
    """A position that cannot be restored is no reason to begin anew without a word."""
    Life(url).run(stop_at=2)
    life = Life(url)
    told = "loader 0 was trained on, and only 0 are registered now"
    with life.spot as spot:
        spot.register_model(life.net, life.optimizer)
        with pytest.raises(IncompatibleCheckpointError, match=told):
            spot.resume()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "gradient_accumulation_steps=0 must be 1, 2, 3 or more"),
        (2.5, "gradient_accumulation_steps=2.5 must be 1, 2, 3 or more"),
        (True, "gradient_accumulation_steps=True must be 1, 2, 3 or more"),
    ],
)
def test_an_accumulation_that_cannot_be_is_refused(value, told, url):
    with pytest.raises(ConfigError, match=told):
        SpotLoop(url, every_steps=1, gradient_accumulation_steps=value)


def register_nothing(life, spot):
    spot.resume()


def register_a_name(life, spot):
    spot.register_model("net")


def register_no_optimizer(life, spot):
    spot.register_model(life.net, ["sgd"])


def register_another_model(life, spot):
    spot.register_model(nn.Linear(6, 3), life.optimizer)
    spot.resume()


def register_an_iterator(life, spot):
    spot.register_loader(iter(life.loader))


def register_a_loader_of_fabric(life, spot):
    spot.register_loader(Fabric(accelerator="cpu", devices=1).setup_dataloaders(life.loader))


def register_a_loader_late(life, spot):
    spot.register_model(life.net, life.optimizer)
    spot.resume()
    spot.register_loader(life.loader)


def take_batches_of_another_loader(life, spot):
    spot.register_model(life.net, life.optimizer)
    spot.register_loader(life.loader)
    spot.resume()
    spot.batches(DataLoader(Points(4)))


def open_another(life, spot):
    with SpotLoop(f"{life.url}2", every_steps=1):
        pass


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (register_a_name, "model=str must be a torch.nn.Module, as it is trained"),
        (register_no_optimizer, "optimizers=str must be an optimizer of torch or several"),
        (register_an_iterator, "can be read once at most, so it has no position that could be restored"),
        (register_a_loader_of_fabric, r"a loader of fabric.setup_dataloaders\(\) numbers its epochs by itself"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_registered_is_refused(mistake, told, url):
    """The error names what is wrong and the remedy."""
    life = Life(url)
    with pytest.raises(ConfigError, match=told):
        mistake(life, life.spot)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (register_nothing, r"no model is registered, so there is nothing to save: call spot.register_model\(model"),
        (register_another_model, "optimizer 0 trains 2 parameters of no registered model, so they would not be saved"),
        (register_a_loader_late, r"register_loader\(\) after spot.resume\(\) is too late to restore the position"),
        (take_batches_of_another_loader, r"this DataLoader is not registered, so its position cannot be saved. Pass"),
        (open_another, "another SpotLoop is open in this process, and its `with` block has not ended"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_refused_before_a_step(mistake, told, url):
    """The error names what is wrong and the call that helps."""
    life = Life(url)
    with pytest.raises(ConfigError, match=told), life.spot as spot:
        mistake(life, spot)


def test_calls_before_the_resume_are_refused(url):
    """Nothing is trained that a resume would then overwrite."""
    life = Life(url)
    calls = [
        lambda spot: spot.after_step(),
        lambda spot: spot.epochs(1),
        lambda spot: spot.batches(life.loader),
        lambda spot: spot.sync_gradients,
        lambda spot: spot.pause().__enter__(),
        lambda spot: spot.keep(1),
    ]
    with life.spot:
        for call in calls:
            with pytest.raises(RuntimeError, match=r"call spot.resume\(\) first, after spot.register_model\(\)"):
                call(life.spot)


def test_processes_of_torchrun_that_do_not_know_of_each_other_are_refused(url, monkeypatch):
    """Each of them would train alone and save over the others."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = r"torchrun has started 2 processes, and torch.distributed is not initialized, so each would train alone"
    with pytest.raises(ConfigError, match=told), Life(url).spot:
        pass


def test_weights_that_nobody_registered_are_named(url):
    """A module that trains beside the model is named, with the call that saves it."""
    life = Life(url)
    life.optimizer.add_param_group({"params": []})
    life.other = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    life.optimizer.register_step_post_hook(lambda *_: life.other.step())

    with pytest.warns(UserWarning, match="optimizer SGD .*. To save it: pass optimizers to spot.register_model"):
        life.run()
