"""The best checkpoints of ModelCheckpoint after lives on several machines, compared with one life on one machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hearing import remove, until
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spot_plugins.data import elastic_loader
from spot_plugins.errors import Preempted
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.resume.stored import stored_steps

SCORES = [0.5, 0.2, 0.9, 0.4, 0.8, 0.6]
"""The metric of each validation, so that a best one lies in the middle."""

pytestmark = [pytest.mark.sampled, pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")]


class Net(LightningModule):
    """Two layers with dropout. Its metric is the next one of SCORES, whatever the weights are."""

    def __init__(self, width=3, validates=True):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.validates = validates

    def training_step(self, batch, batch_idx):
        if not self.validates:
            self.log("score", SCORES[self.current_epoch])
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        number = self.global_step // 4 - 1 if self.trainer.state.fn == "fit" else 0
        self.log("score", SCORES[number % len(SCORES)])
        self.log("loss", self.net(batch[0]).square().mean())

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]

    def train_dataloader(self):
        return elastic_loader(TensorDataset(torch.arange(32.0).view(8, 4) / 32), batch_size=2, seed=3)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 4)), batch_size=2)

    def test_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 4)), batch_size=2)


class Notice(Callback):
    """Sends this process a SIGTERM before a batch of the whole training, counted from 0."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            # These batches take less time than a notice takes to be known.
            (spot,) = (each for each in trainer.callbacks if isinstance(each, SpotCheckpoint))
            until(lambda: spot._fit.session.notice is not None, "the notice is known")


class MachineLostError(Exception):
    """Stands for a SIGKILL: nothing is saved any more."""


class Kill(Callback):
    """Ends this life before a batch, as if the process was killed."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at:
            raise MachineLostError


def life(folder, *callbacks, url=None, make=None, **settings):
    """One life of the training. Return its ModelCheckpoint, trainer and module."""
    torch.manual_seed(1)
    module = Net(validates=settings.get("limit_val_batches") != 0)
    checkpoint = make(folder) if make else ModelCheckpoint(folder / "best", monitor="score", mode="max", save_top_k=2)
    url = url or str(folder / "run")
    spot = SpotCheckpoint(url, every_steps=3, keep_last=1, grace_seconds=60, local_dir=str(folder / "local"))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[*callbacks, spot, checkpoint],
        log_every_n_steps=1,
        **{**quiet, "max_epochs": 6, **settings},
    )
    trainer.fit(module)
    return checkpoint, trainer, module


def lives(folder, *stops, **settings):
    """Lives that are preempted at *stops*, each on a new machine, and a last one that ends. See :func:`life`."""
    for stop in stops:
        with pytest.raises(MachineLostError if isinstance(stop, Kill) else Preempted):
            life(folder, stop, **settings)
        new_machine(folder)
    return life(folder, **settings)


def new_machine(folder):
    """Remove everything but the store."""
    for path in list(folder.iterdir()):
        if path.name != "run":
            remove(path)


def names(checkpoint):
    """The best files without their directory, with their scores."""
    return {os.path.basename(path): float(score) for path, score in checkpoint.best_k_models.items()}


def assert_same_file(one, other):
    """Fail unless two checkpoints of Lightning have the same content, but for callbacks and paths."""
    one, other = torch.load(one, weights_only=False), torch.load(other, weights_only=False)
    assert one.keys() == other.keys()
    for key in ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters", "hparams_name"):
        assert one[key] == other[key], key
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(one.get(key), other.get(key), key)


def assert_same(one, other, path):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


@pytest.mark.parametrize(
    "stops",
    [[Notice(13)], [Notice(14)], [Notice(12)], [Kill(14)], [Notice(9), Notice(14), Kill(21)]],
    ids=["notice", "later", "first batch", "kill", "three"],
)
def test_the_best_outlives_the_machine(stops, tmp_path):
    """
    The third of six epochs is the best. Its machine is lost, with all files. At the end the best is there again, in
    all bits the one of a training that was left alone, and `ckpt_path="best"` and load_from_checkpoint find it.
    """
    control, trainer, _ = life(tmp_path / "control")
    best = names(control)
    wanted = trainer.test(ckpt_path="best", verbose=False)

    checkpoint, trainer, _ = lives(tmp_path / "spot", *stops)

    assert names(checkpoint) == best
    assert os.path.basename(checkpoint.best_model_path) == os.path.basename(control.best_model_path)
    assert sorted(os.listdir(tmp_path / "spot/best")) == sorted(os.listdir(tmp_path / "control/best"))
    for name in best:
        assert_same_file(tmp_path / "spot/best" / name, tmp_path / "control/best" / name)
    assert trainer.test(ckpt_path="best", verbose=False) == wanted
    assert names(checkpoint) == names(control)  # a test restores the state of callbacks from the file
    assert Net.load_from_checkpoint(checkpoint.best_model_path).hparams == {"width": 3, "validates": True}
    kept = {each.step for each in stored_steps(str(tmp_path / "spot/run")) if each.kept_by == ("lightning",)}
    assert kept == {12, 20}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (
            lambda folder: ModelCheckpoint(folder / "best", monitor="score", mode="max"),
            {"limit_val_batches": 0},
        ),
        (
            lambda folder: ModelCheckpoint(
                folder / "best", monitor="score", mode="max", every_n_train_steps=2, save_on_train_epoch_end=False
            ),
            {"val_check_interval": 2},
        ),
        (
            lambda folder: ModelCheckpoint(
                folder / "best", monitor="score", mode="max", filename="best", save_weights_only=True
            ),
            {},
        ),
        (lambda folder: ModelCheckpoint(folder / "best", monitor="score", mode="max", save_top_k=-1), {}),
        (
            lambda folder: ModelCheckpoint(
                folder / "best", monitor="score", mode="max", save_last=True, save_on_train_epoch_end=False
            ),
            {},
        ),
    ],
    ids=["without validation", "steps", "one name", "all", "after validation"],
)
def test_every_way_to_write_a_best_file(make, settings, tmp_path):
    """At the end of an epoch or in it, with a name that is used again, with all files, with the last one too."""
    control, trainer, _ = life(tmp_path / "control", make=make, **settings)
    best = names(control)
    wanted = trainer.test(ckpt_path="best", verbose=False)

    checkpoint, trainer, _ = lives(tmp_path / "spot", Notice(14), make=make, **settings)

    assert names(checkpoint) == best
    assert os.path.basename(checkpoint.best_model_path) == os.path.basename(control.best_model_path)
    assert_same_file(checkpoint.best_model_path, control.best_model_path)
    assert trainer.test(ckpt_path="best", verbose=False) == wanted


@pytest.mark.parametrize("is_same_machine", [True, False])
def test_a_new_directory_of_the_logger_does_not_forget_the_best(is_same_machine, tmp_path):
    """Every life has a version_N of its own in the log; the best files stay in that of the first one."""

    def make(folder):
        return ModelCheckpoint(monitor="score", mode="max", save_top_k=2)

    control, _, _ = life(tmp_path / "control", make=make, logger=CSVLogger(tmp_path / "control/logs"))
    folder = tmp_path / "spot"
    with pytest.raises(Preempted):
        life(folder, Notice(14), make=make, logger=CSVLogger(folder / "logs"))
    if not is_same_machine:
        new_machine(folder)
        (folder / "logs/lightning_logs/version_0").mkdir(parents=True)

    checkpoint, trainer, _ = life(folder, make=make, logger=CSVLogger(folder / "logs"))

    assert trainer.logger.version == 1
    assert checkpoint.dirpath == str(folder / "logs/lightning_logs/version_0/checkpoints")
    assert names(checkpoint) == names(control)
    for name in names(control):
        assert_same_file(os.path.join(checkpoint.dirpath, name), os.path.join(control.dirpath, name))


def test_a_machine_with_another_root_gets_the_best_files_there(tmp_path):
    """Without a dirpath the files move along; nothing is written where the first machine had its files."""

    def make(folder):
        return ModelCheckpoint(monitor="score", mode="max", save_top_k=2)

    url = str(tmp_path / "run")
    control, _, _ = life(tmp_path / "control", make=make)
    with pytest.raises(Preempted):
        life(tmp_path / "one", Notice(14), make=make, url=url)
    remove(tmp_path / "one")

    checkpoint, _, _ = life(tmp_path / "two", make=make, url=url)

    assert not (tmp_path / "one").exists()
    assert checkpoint.dirpath == str(tmp_path / "two/checkpoints")
    assert names(checkpoint) == names(control)
    for name in names(control):
        assert_same_file(os.path.join(checkpoint.dirpath, name), os.path.join(control.dirpath, name))


def forged(**changes):
    """A ModelCheckpoint whose stored state somebody has changed. Each of *changes* gets the honest state."""

    class Forged(ModelCheckpoint):
        def state_dict(self):
            state = super().state_dict()
            return {**state, **{name: change(state) for name, change in changes.items()}}

    return Forged


def test_a_file_outside_the_directory_is_not_written(tmp_path):
    """The paths come from the store, where somebody may have changed them."""
    outside = str(tmp_path / "outside.ckpt")
    forger = forged(best_k_models=lambda state: {outside: torch.tensor(9.0), **state["best_k_models"]})

    def make(folder):
        return forger(folder / "best", monitor="score", mode="max", save_top_k=3)

    with pytest.raises(Preempted):
        life(tmp_path / "spot", Notice(14), make=make)
    new_machine(tmp_path / "spot")
    with pytest.warns(UserWarning, match=r"Forged: paths .* are dropped, .*outside.ckpt"):
        life(tmp_path / "spot", make=make, max_epochs=4)

    assert not (tmp_path / "outside.ckpt").exists()


@pytest.mark.parametrize(
    ("name", "detour"),
    [
        ("best_k_models", "best/../victim"),
        ("best_model_path", "best/../victim"),
        ("last_model_path", "best/../victim"),
        ("best_k_models", "logs/lightning_logs/version_0/checkpoints/../victim"),
    ],
)
def test_a_folder_outside_the_directory_is_not_deleted(name, detour, tmp_path):
    """Lightning compares the beginning of a path that leads elsewhere, and deletes the whole folder."""
    folder = tmp_path / "spot"
    victim = os.path.join(folder, detour)
    changes = {name: lambda state: victim, "kth_best_model_path": lambda state: victim}
    asked = {"save_last": name == "last_model_path"}
    if name == "best_k_models":
        changes[name] = lambda state: {victim: torch.tensor(-1.0)}
        asked = {"monitor": "score", "mode": "max"}
    has_logger = detour.startswith("logs")

    def fit(*callbacks):
        logger = CSVLogger(folder / "logs") if has_logger else False
        make = lambda folder: forged(**changes)(None if has_logger else folder / "best", **asked)  # noqa: E731
        life(folder, *callbacks, make=make, logger=logger, max_epochs=2)

    with pytest.raises(Preempted):
        fit(Notice(5))
    os.makedirs(victim)
    precious = Path(victim) / "precious"
    precious.touch()
    with pytest.warns(UserWarning, match=r"Forged: paths .* are dropped, .*victim"):
        fit()

    assert precious.exists()


def test_a_best_file_that_is_lost_for_good_is_told(tmp_path):
    """A ModelCheckpoint without a monitor keeps nothing. If its newest file is lost, the end of fit says so."""

    def make(folder):
        return ModelCheckpoint(folder / "best", every_n_epochs=3)

    with pytest.raises(Preempted):
        life(tmp_path / "spot", Notice(14), make=make)
    new_machine(tmp_path / "spot")
    told = (
        r"""best_model_path='.*' was on another machine, so ckpt_path='best' finds no file\. Give ModelCheckpoint a """
    )
    told += r"dirpath that every machine sees, or a monitor, so that the run keeps its best steps"
    with pytest.warns(UserWarning, match=told):
        life(tmp_path / "spot", make=make, max_epochs=5)
