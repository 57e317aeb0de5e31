"""The checkpoints of Lightning and Accelerate themselves, through their public calls."""

from __future__ import annotations

import logging
import time

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from .base import Saved, Way


def quieten():
    """Silence Lightning's tips, after it was imported."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _lightning():
    """Return classes that need Lightning. Its import takes seconds, and only its own ways need it."""
    import lightning.pytorch as pl

    quieten()

    class Module(pl.LightningModule):
        """A module with model and optimizer of the benchmark. Its only step is the whole measurement."""

        def __init__(self, training, body, when_set_up, when_started):
            super().__init__()
            self.automatic_optimization = False
            self.model = training.model
            self.benchmark = (training, body, when_set_up, when_started)

        def configure_optimizers(self):
            return self.benchmark[0].optimizer

        def setup(self, stage):
            self.benchmark[2]()

        def on_train_start(self):
            self.benchmark[3]()

        def training_step(self, batch, batch_idx):
            self.benchmark[1]()

    class AlreadyWrapped(pl.strategies.DDPStrategy):
        """Lightning's DDP strategy for a model that the benchmark has wrapped already."""

        def _setup_model(self, model):
            return model

    class Once(pl.Callback):
        """A callback that ends the fit after its only step."""

        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    return pl, Module, AlreadyWrapped, Once


class Lightning(Way):
    """
    ``trainer.save_checkpoint`` within ``fit``, as ``ModelCheckpoint`` calls it.

    The measurement runs in a training step, so that trainer, strategy and optimizers are those of a real fit.
    """

    def __init__(self, training, folder):
        super().__init__(training, folder)
        self.trainer = None

    def plugins(self):
        return []

    def run(self, body, **fit):
        pl, module_class, strategy, once = _lightning()
        on_ranks = dist.is_initialized() and dist.get_world_size() > 1
        self.trainer = pl.Trainer(
            accelerator="gpu" if self.training.device.type == "cuda" else "cpu",
            devices=dist.get_world_size() if on_ranks else 1,
            strategy=strategy() if on_ranks else "auto",
            plugins=self.plugins(),
            max_epochs=-1,
            max_steps=-1,
            limit_train_batches=1,
            callbacks=[once()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )
        when_set_up = fit.pop("when_set_up", _nothing)
        when_started = fit.pop("when_started", _nothing)
        module = module_class(self.training, body, when_set_up, when_started)
        self.trainer.fit(module, DataLoader(torch.zeros(1, 1), batch_size=1), **fit)

    def save(self, step):
        self.trainer.save_checkpoint(self.path_of(step))
        return Saved.at_once()

    def load(self, step):
        """Measure the time between ``setup`` and the start of training in a ``fit`` with ``ckpt_path``."""
        times = []

        def note():
            self.training.synchronize()
            times.append(time.perf_counter())

        self.run(_nothing, when_set_up=note, when_started=note, ckpt_path=self.path_of(step), weights_only=True)
        return times[-1] - times[0]


class LightningAsync(Lightning):
    """``Lightning`` with the plugin that writes on a thread."""

    def plugins(self):
        from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

        outer = self

        class FinishesSaved(TorchCheckpointIO):
            """Finishes the :class:`Saved` after the write, because the plugin around it does not report the end."""

            def save_checkpoint(self, *args, **kwargs):
                super().save_checkpoint(*args, **kwargs)
                outer.saved.finish()

        return [AsyncCheckpointIO(FinishesSaved())]

    def save(self, step):
        self.saved = saved = Saved()
        self.trainer.save_checkpoint(self.path_of(step))
        if not self.trainer.is_global_zero:  # only rank 0 writes
            saved.finish()
        return saved


def _nothing():
    pass


class Accelerate(Way):
    """``accelerator.save_state`` with its defaults, safetensors for the model and ``torch.save`` for the optimizer."""

    wraps = True

    def __init__(self, training, folder):
        from accelerate import Accelerator

        super().__init__(training, folder)
        self.accelerator = Accelerator(cpu=training.device.type == "cpu")
        training.module, _ = self.accelerator.prepare(training.module, training.optimizer)

    def save(self, step):
        self.accelerator.save_state(str(self.path_of(step)))
        return Saved.at_once()

    def restore(self, step):
        self.accelerator.load_state(str(self.path_of(step)))
