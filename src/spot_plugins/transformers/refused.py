"""The settings of a ``Trainer`` that cannot be continued exactly. They are refused before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from transformers import Trainer

from ..errors import ConfigError
from ..guard import warn
from . import internals, trl_internals
from .loaders import STRATEGIES

EXPERIMENTAL: Final = (
    "{name} is one of the experimental trainers of TRL, which are not tested. Its own figures for the next log, and "
    "any state beside model, optimizer and trainer.state, are not saved. Compare two short runs with spot drill first"
)


def refuse(trainer: Trainer, trial: Any) -> None:
    """
    Raise :exc:`ConfigError` for the first setting that is not supported.

    Args:
        trainer: Before it trains.
        trial: The trial of a hyperparameter search, or None.
    """
    internals.check(trainer)
    for text in _reasons(trainer, trial):
        raise ConfigError(text)
    if trl_internals.is_experimental(trainer):
        warn(EXPERIMENTAL.format(name=type(trainer).__name__))


def _reasons(trainer: Trainer, trial: Any) -> Iterator[str]:
    args, own = trainer.args, type(trainer).__mro__[2]
    if trainer.is_deepspeed_enabled:
        yield "DeepSpeed has copies of weights and optimizer that are not saved. Leave it out, and use DDP"
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        yield (
            "FSDP1 under a Trainer is not supported. Set version to 2 in fsdp_config, or fsdp_version to 2 in the "
            "configuration of accelerate launch"
        )
    if args.n_gpu > 1:
        yield (
            f"n_gpu={args.n_gpu}: one process with several GPUs (DataParallel) is not supported. Start one process per "
            f"GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    if args.auto_find_batch_size:
        yield (
            "auto_find_batch_size=True begins the training again with smaller batches, which a resumed run would not "
            "know. Set per_device_train_batch_size"
        )
    if trial is not None or trainer.hp_search_backend is not None:
        yield (
            "hyperparameter_search() trains several models, and one run holds one training. Leave out the callback in "
            "the search, and use it with the settings that were found"
        )
    if args.enable_jit_checkpoint:
        yield (
            "enable_jit_checkpoint=True takes SIGTERM as well, and both would save at once. Leave it out, because "
            "SpotTrainerCallback saves on SIGTERM"
        )
    if args.ignore_data_skip:
        yield (
            "ignore_data_skip=True trains on samples twice after a resume. Leave it out, because a resumed run goes to "
            "its position at once"
        )
    if args.accelerator_config.split_batches:
        yield (
            "split_batches=True makes the batches of a rank depend on the number of ranks, so a step could not keep "
            "its samples. Leave it out of accelerator_config"
        )
    if args.train_sampling_strategy not in STRATEGIES:
        yield (
            f"train_sampling_strategy={str(args.train_sampling_strategy)!r} is not supported yet, because its order "
            f"depends on the batches of one process. Use 'random', 'sequential' or 'group_by_length'"
        )
    yield from _loops(trainer, own)


def _loops(trainer: Trainer, own: type) -> Iterator[str]:
    if trl_internals.generates(trainer):
        yield from _generations(trainer, own)
    for name in internals.OWN_LOOPS:
        if getattr(own, name) is not getattr(Trainer, name):
            yield (
                f"{own.__name__}.{name}() replaces the training loop of Trainer, so its steps cannot be followed. "
                f"Trainers with the loop of Trainer are supported"
            )


def _generations(trainer: Trainer, own: type) -> Iterator[str]:
    """Yield the reasons why a trainer of TRL that generates cannot be continued exactly."""
    if trl_internals.is_experimental(trainer):
        yield (
            f"{own.__name__} trains on what it generates, and is one of the experimental trainers of TRL, whose state "
            f"is not known. GRPOTrainer, RLOOTrainer and DistillationTrainer are supported"
        )
    if trainer.use_vllm:
        yield (
            "use_vllm=True generates with random numbers of vLLM, which are not saved. Leave it out, and transformers "
            "generates"
        )
    if getattr(trainer.args, "use_transformers_continuous_batching", False):
        yield (
            "use_transformers_continuous_batching=True puts together batches by the time that they take, so a resumed "
            "run would generate other texts. Leave it out"
        )
    if trl_internals.generates_from_images(trainer):
        yield (
            f"{own.__name__} with a processor of images is not supported yet, because its batches are not saved. Use a "
            f"tokenizer and a model of text"
        )
    for name in ("tools", "environment_factories", "rollout_func"):
        if getattr(trainer, name, None):
            yield (
                f"{own.__name__} with {name} is not supported yet, because their state is not saved. Compute rewards "
                f"with reward_funcs alone"
            )
