"""Loggers of the hosts get figures of the run, without code of the user: no step twice, also after a kill."""

from __future__ import annotations

import csv
import json

import lightning_lives
import trainer_lives
from accelerate.tracking import GeneralTracker, on_main_process
from hearing import until_idle
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from loops import Numbers, live
from torch.optim import SGD
from transformers import TrainerCallback

from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.transformers import SpotTrainerCallback

NAMES = {"spot/goodput", "spot/stall_s", "spot/lost_steps", "spot/interruptions"}


def check(rows, last):
    """Check *rows*, pairs of a step and its figures, of a life that is killed and one that goes on to step *last*."""
    assert [step for step, _ in rows] == sorted({step for step, _ in rows}), "each step once, in order"
    assert rows[-1][0] == last
    for _, figures in rows:
        assert figures.keys() == NAMES
        assert 0 < figures["spot/goodput"] < 1
        assert figures["spot/stall_s"] > 0
    (first, last) = rows[0][1], rows[-1][1]
    assert (first["spot/lost_steps"], first["spot/interruptions"]) == (0, 0)
    assert last["spot/lost_steps"] > 0


def test_loggers_of_lightning(tmp_path):
    """A save at every fifth of 24 steps. The first life is killed before step 13, when step 10 is stored."""
    rows = []
    lives = lightning_lives.Lives(tmp_path, lambda trace: (lightning_lives.Net(trace), [Stored()]), every_steps=5)
    for number, interrupt in enumerate([lightning_lives.Interrupt(13, "kill"), None]):
        logger = CSVLogger(tmp_path, version=number, flush_logs_every_n_steps=1)
        lives.run("run", interrupt, logger=[logger], log_every_n_steps=1)
        with open(tmp_path / f"lightning_logs/version_{number}/metrics.csv") as file:
            rows += [(int(row["step"]), figures_in(row)) for row in csv.DictReader(file) if figures_in(row)]
    check(rows, 24)


class Stored(Callback):
    """Waits before each batch until the last save is stored, so that the next one is not put off."""

    def on_train_batch_start(self, trainer, *args):
        [spot] = [each for each in trainer.callbacks if isinstance(each, SpotCheckpoint)]
        until_idle(spot._fit.session)


def figures_in(row):
    return {name: float(value) for name, value in row.items() if name.startswith("spot/") and value}


class CsvTracker(GeneralTracker):
    """A tracker as Accelerate documents it, which appends lines to a file."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, file):
        super().__init__()
        self.file = file

    @property
    def tracker(self):
        return self.file

    @on_main_process
    def store_init_configuration(self, values):
        """Keep nothing."""

    @on_main_process
    def log(self, values, step=None, **kwargs):
        with self.file.open("a") as file:
            file.write(json.dumps([step, values]) + "\n")


class NewestStepTracker(CsvTracker):
    """Has the name of the tracker for wandb, and its argument."""

    name = "wandb"

    def log(self, values, step=None, commit=True, **kwargs):
        assert not commit
        super().log(values, step)


def test_a_tracker_of_accelerate(tmp_path):
    """Saves at each second step. The first life is killed at step 7, when step 6 is stored."""

    def program(life):
        net = life.net()
        with life.hook() as spot:
            model, optimizer, loader = life.accelerator.prepare(
                net, SGD(net.parameters(), 0.1), elastic_loader(Numbers(20), batch_size=2, seed=0)
            )
            life.accelerator.init_trackers("run")
            spot.resume()
            for _ in spot.epochs(1):
                for number, x in spot.batches(loader):
                    loss = model(x).square().mean()
                    life.accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    life.point(number.tolist())
                    spot.after_step()
                    life.stored()

    file = tmp_path / "lines"
    settings = {"every_steps": 2, "log_with": [CsvTracker(file), NewestStepTracker(tmp_path / "newest")]}
    live(str(tmp_path / "run"), program, ("kill", 8), **settings)
    live(str(tmp_path / "run"), program, **settings)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    check([(step, figures) for step, figures in rows], 10)
    joined = [json.loads(line) for line in (tmp_path / "newest").read_text().splitlines()]
    assert joined == [[None, figures] for _, figures in rows], "wandb gets no step, because it drops an older one"


def test_trackers_of_a_trainer(tmp_path):
    """They get the figures with a log that the trainer writes anyway. Its history, which is state, has none of them."""
    rows, histories = [], []
    for interrupt in (trainer_lives.Interrupt("kill", "train", 15), None):
        seen = Seen()
        settings = {"every_steps": 4, "logging_steps": 1, "change": lambda given, seen=seen: with_callback(given, seen)}
        life = trainer_lives.Life(str(tmp_path / "run"), tmp_path / "output", interrupt, **settings)
        life.run()
        rows += seen.rows
        histories.append(life.trainer.state.log_history)
    assert not any(name in NAMES for history in histories for entry in history for name in entry)
    check(rows, 22)


class Seen(TrainerCallback):
    """Keeps the figures that it is given, as a callback for a tracker does. It waits for each save."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if figures := {name: value for name, value in logs.items() if name in NAMES}:
            self.rows.append((state.global_step, figures))

    def on_step_begin(self, args, state, control, **kwargs):
        until_idle(self.spot._attached.fit.hook._session)


def with_callback(given, seen):
    [seen.spot] = [each for each in given["callbacks"] if isinstance(each, SpotTrainerCallback)]
    return {**given, "callbacks": [*given["callbacks"], seen]}
