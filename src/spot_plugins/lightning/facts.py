"""The facts about a training with Lightning that a session cannot see, and the end of a training that is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
from lightning.pytorch import LightningModule, Trainer

from ..program import Program


def host_level() -> int:
    """Return the lowest level that Lightning shows. Users silence it by the level of its logger."""
    return logging.getLogger("lightning.pytorch").getEffectiveLevel()


def describe(program: Program, trainer: Trainer, pl_module: LightningModule) -> None:
    """Describe settings and hyperparameters to *program*, before the resume."""
    program.add_versions(lightning=lightning.__version__)
    program.add_settings(
        precision=trainer.precision,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )
    program.add_hparams(pl_module.hparams)
    program.epoch = lambda: trainer.current_epoch
    if trainer.ckpt_path:
        program.start = f"from ckpt_path={str(trainer.ckpt_path)!r}"


def describe_loaders(program: Program, trainer: Trainer) -> None:
    """Describe the training loaders to *program*. Lightning makes them after the resume."""
    program.add_loaders(_flat(trainer.train_dataloader))


def tell_if_finished(program: Program, trainer: Trainer, step: int | None) -> None:
    """Let *program* say after the resume from *step* that nothing is left. Lightning runs no hook of training then."""
    if step is None:
        return
    num_epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    for name, done, limit in (
        ("max_steps", trainer.global_step, trainer.max_steps),
        ("max_epochs", num_epochs, trainer.max_epochs),
    ):
        if limit is not None and limit != -1 and done >= limit:
            program.tell_finished(step, f"{name}={limit} is reached")
            return


def _flat(loaders: Any) -> Iterator[Any]:
    """Yield the loaders in a list or a dict of them, however nested."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for each in loaders:
            yield from _flat(each)
    elif loaders is not None:
        yield loaders
