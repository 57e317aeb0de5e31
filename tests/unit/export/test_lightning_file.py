"""Files of Lightning: equal to those that the trainer itself writes at the same place, and continued like them."""

from __future__ import annotations

import shutil

import pytest
import torch
from golden.hosts import Module as GoldenModule
from golden.make import DATA
from golden.training import EPOCHS, STEPS_PER_EPOCH, STORED
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from stored_models import LOOPS, WAYS, damage, save_model
from torch import nn
from torch.utils.data import DataLoader

from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.export.lightning_file import export_lightning
from spot_plugins.lightning import internals

BATCHES = 4
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


class Module(LightningModule):
    """Trains in order, with two optimizer groups and a scheduler that steps after each batch."""

    def __init__(self, *, validates=False):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.validates = validates

    def training_step(self, batch):
        return self.layer(batch).square().mean()

    def validation_step(self, batch):
        self.log("validated", self.layer(batch).mean())

    def configure_optimizers(self):
        groups = [{"params": self.layer[2].parameters(), "lr": 0.05}, {"params": self.layer[:2].parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self):
        return DataLoader(torch.arange(4.0 * 2 * BATCHES).view(-1, 4) / 32, batch_size=2)

    def val_dataloader(self):
        return self.train_dataloader()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 5


class Saver(Callback):
    """Saves one step twice: as Lightning does, and as the parts of SpotCheckpoint."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step != self.step:
            return
        trainer.save_checkpoint(self.folder / "stock.ckpt")
        others = {
            "callbacks": {
                **{each.state_key: each.state_dict() for each in trainer.callbacks if each.state_dict()},
                "spot_plugins/best": {"files": {}},
            },
            "scheduler-0": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "precision": {},
            "loops": {"fit_loop": internals.fit_loop_state(trainer), "should_stop": False},
            "checkpoint-hooks": {"mine": 5},
            "program": {"software": {"is": "software", "lightning": "2.6.6"}},
        }
        save_model(str(self.folder / "run"), {"model": pl_module}, trainer.optimizers, step=self.step, others=others)


def fit(*callbacks, max_epochs=3, ckpt_path=None, **settings):
    module = Module(**settings)
    limits = {"num_sanity_val_steps": 0, "limit_val_batches": 1.0 if module.validates else 0}
    trainer = Trainer(accelerator="cpu", max_epochs=max_epochs, callbacks=[*callbacks], **limits, **QUIET)
    trainer.fit(module, ckpt_path=ckpt_path)
    return module, trainer


def assert_equal(one, other, path=""):
    assert type(one) is type(other) or {type(one), type(other)} <= {dict, type(nn.Linear(1, 1).state_dict())}, path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (each, its) in enumerate(zip(one, other, strict=True)):
            assert_equal(each, its, f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


@pytest.mark.parametrize("step", [BATCHES, BATCHES + 2], ids=["at the end of an epoch", "within an epoch"])
@pytest.mark.parametrize("validates", [False, True], ids=["", "with validation"])
def test_the_file_is_that_of_lightning(step, validates, tmp_path):
    """Key by key, and loaded without running code. A fit from it ends in the same bits as one from Lightning's."""
    stopping = [EarlyStopping("validated", patience=9)] if validates else []
    fit(*stopping, Saver(tmp_path, step), validates=validates)

    result = export_lightning(str(tmp_path / "run"), tmp_path / "out.ckpt")

    found, stock = (torch.load(tmp_path / name, weights_only=True) for name in ("out.ckpt", "stock.ckpt"))
    stock["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # positions of loaders
    assert_equal(found, stock)
    assert (result.num_tensors, result.notes) == (9, ())
    stopping = [EarlyStopping("validated", patience=9)] if validates else []
    ends = [fit(*stopping, ckpt_path=tmp_path / name, validates=validates) for name in ("out.ckpt", "stock.ckpt")]
    assert_equal(*({"model": m.state_dict(), "optimizer": t.optimizers[0].state_dict()} for m, t in ends))
    assert [trainer.global_step for _, trainer in ends] == [3 * BATCHES] * 2


def test_a_training_continues_bit_for_bit_from_the_end_of_an_epoch(tmp_path):
    """Without a validation it is, in the end, what a training is that nothing interrupted."""
    module, trainer = fit(Saver(tmp_path, 2 * BATCHES))

    export_lightning(str(tmp_path / "run"), tmp_path / "out.ckpt")

    again, its = fit(ckpt_path=tmp_path / "out.ckpt")
    assert_equal(again.state_dict(), dict(module.state_dict()))
    assert_equal(its.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())
    assert its.lr_scheduler_configs[0].scheduler.state_dict() == trainer.lr_scheduler_configs[0].scheduler.state_dict()


@pytest.mark.parametrize("name", ["lightning", "lightning-ddp"])
def test_a_checkpoint_of_a_real_training(name, tmp_path):
    """Of one rank, or of two under DDP, in the middle of an epoch: fit, validate and load_from_checkpoint take it."""
    shutil.copytree(DATA / name, tmp_path / "run")

    export_lightning(str(tmp_path / "run"), tmp_path / "out.ckpt")

    saved = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (STORED // STEPS_PER_EPOCH, STORED)
    module = GoldenModule.load_from_checkpoint(tmp_path / "out.ckpt", url=None, stop=False, world_size=1)
    assert_equal(dict(module.state_dict()), dict(saved["state_dict"]))
    trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=[EarlyStopping("validated", patience=9)], **QUIET)
    fresh = GoldenModule(None, False, 1)
    trainer.validate(fresh, ckpt_path=tmp_path / "out.ckpt", verbose=False)
    assert_equal(dict(fresh.state_dict()), dict(saved["state_dict"]))
    trainer.fit(fresh, ckpt_path=tmp_path / "out.ckpt")
    assert trainer.global_step == EPOCHS * STEPS_PER_EPOCH


@pytest.mark.parametrize(("world_size", "is_spread"), [*WAYS[1:], (4, True)])
def test_the_file_is_the_same_from_any_ranks(world_size, is_spread, tmp_path):
    """As under DDP, and as under FSDP2, whose ranks have some rows each."""
    fit(Saver(tmp_path, 1), max_epochs=1)
    loops = torch.load(tmp_path / "stock.ckpt", weights_only=True)["loops"]
    model = Module()
    optimizer = torch.optim.AdamW(model.parameters())
    model.training_step(torch.ones(2, 4)).backward()
    optimizer.step()

    for name, ways in (("one", {}), ("several", {"world_size": world_size, "is_spread": is_spread})):
        save_model(str(tmp_path / name), {"model": model}, [optimizer], others={"loops": loops}, **ways)
        export_lightning(str(tmp_path / name), tmp_path / f"{name}.ckpt")

    one, several = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("one", "several"))
    assert_equal(several, one)
    assert_equal(several["state_dict"], dict(model.state_dict()))
    assert_equal(several["optimizer_states"][0], optimizer.state_dict())


def test_what_the_file_cannot_have_is_told(tmp_path):
    """The state of a data module; a scaler is there, with numbers."""
    fit(Saver(tmp_path, 1), max_epochs=1)
    model, optimizer = Module(), torch.optim.SGD(Module().parameters(), lr=0.1)
    state = torch.load(tmp_path / "stock.ckpt", weights_only=True)["loops"]
    others = {"loops": state, "precision": {"scale": torch.tensor(2.0)}, "datamodule": {"seen": 3}}
    save_model(str(tmp_path / "other"), {"model": model}, [optimizer], others=others)

    result = export_lightning(str(tmp_path / "other"), tmp_path / "out.ckpt")

    assert result.notes == ("the state of the data module is left out, because the step does not name its class",)
    assert torch.load(tmp_path / "out.ckpt", weights_only=True)["MixedPrecision"] == {"scale": 2.0}


def test_nothing_is_left_if_it_fails(tmp_path):
    """Another host's run, a value that only Lightning can make, a damaged blob, a file that exists."""
    model = Module()
    save_model(str(tmp_path / "bare"), {"model": model})
    loops = {"loops": {"fit_loop": {"epoch_progress": 1}}}
    save_model(str(tmp_path / "run"), {"model": model}, others=loops)
    hparams = {"loops": LOOPS, "checkpoint-hooks": model.hparams}
    save_model(str(tmp_path / "hparams"), {"model": model}, others=hparams)
    save_model(str(tmp_path / "damaged"), {"model": model}, others={"loops": LOOPS})
    damage(tmp_path / "damaged")
    (tmp_path / "mine").touch()

    for run, out, error, message in (
        ("bare", "out", ConfigError, "this run was not trained with Lightning, so it has no loops that a .ckpt needs"),
        ("run", "out", CorruptCheckpointError, "holds unreadable state: TypeError"),
        ("run", "mine", ConfigError, "exists already: give the path of a new file or folder"),
        ("hparams", "out", ConfigError, r"checkpoint-hooks has values that the output cannot hold: \$dict_kind"),
        ("damaged", "out", CorruptCheckpointError, "has changed since it was written: its hash differs"),
    ):
        with pytest.raises(error, match=message):
            export_lightning(str(tmp_path / run), tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "damaged", "hparams", "mine", "run"]
