"""The loop in plain PyTorch, as the program sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..config import ElasticBatch, EverySeconds, FastForward, NoticeSources, OnNotice, Seconds, from_environment
from ..errors import ConfigError
from ..events import Subscriber
from ..loop import Loop
from ..program import subscribers_of
from ..state import ModelPart, OptimizerPart
from ..state.part import Part
from . import fabric_internals
from .guarded import REMEDIES
from .plain import PlainPyTorch
from .registered import Accumulation, Registered

if TYPE_CHECKING:
    from typing_extensions import Self  # torch has it; Python only since 3.11


class SpotLoop(Loop):
    """
    Save on steps or seconds, leave safely when the machine is taken, and continue where the loop was.

    A loop that uses everything::

        with SpotLoop("s3://bucket/run-7", every_steps=100) as spot:
            spot.register_model(model, optimizer, scheduler)
            loader = spot.register_loader(elastic_loader(dataset, batch_size=32, seed=7))
            progress = spot.resume()
            for epoch in spot.epochs(num_epochs):
                for batch in spot.batches(loader):
                    loss = ...
                    (loss / spot.gradient_accumulation_steps).backward()
                    if spot.sync_gradients:
                        ...  # optimizer.step(), scheduler.step(), optimizer.zero_grad()
                    spot.after_step()
                with spot.pause():
                    for batch in validation_loader:
                        spot.check()
                        ...

    After a SIGTERM the state is saved and stored, and :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves
    the block. Leaving the block at its end saves the end of the training and waits until it is stored.

    It works on one process and, once ``torch.distributed`` is initialized, on many: with DDP, FSDP1, FSDP2 and tensor
    parallelism. The names and calls are those of :class:`~spot_plugins.accelerate.SpotHook`.

    A step is one in which an optimizer stepped, also if a registered scaler left out the update because of an overflow.
    Nothing is saved within gradient accumulation.

    A resumed program runs its loop again from the head of the epoch, with the batches that are left. Code that
    follows :meth:`after_step` in the body is not repeated for the saved step. Code that follows the last batch of an
    epoch is repeated, if the saved step is the last one of that epoch. Every loader yields the same samples in the
    same order.

    Every rank makes one. A ``SPOT_*`` variable stands for each setting that is None: ``SPOT_EVERY_STEPS`` for
    *every_steps*, and so on for all but *storage_options*. :class:`~spot_plugins.config.SpotConfig` says more of each.

    Args:
        url: URL of the run, such as s3://bucket/run-7 or file:///data/run-7. One run per URL.
        every_steps: Optimizer steps between saves. None: not by steps.
        every_seconds: Seconds between saves, or a timedelta. 'auto': the interval that wastes least. None: not by time.
        grace_seconds: Seconds, or a timedelta, from a SIGTERM until the machine is gone.
        on_notice: Once all ranks have saved: 'leave' on all of them, or 'continue' on those without a notice.
        notice_sources: Services to ask for notices: aws, gcp, azure, slurm. 'auto': those that are found. Empty: none.
        notice_file: File whose appearance is a notice, or an http:// URL. None: no file.
        acknowledge_notice: Let the provider take the machine as soon as all is saved. Azure only.
        keep_last: Committed checkpoints to keep, counted from the newest.
        keep_every: Keep each checkpoint whose step is a multiple of this as well. None: no others.
        local_dir: Directory on a fast local disk for a first copy. None: one in the temporary directory.
        local_dir_survives: True if the next attempt finds the local disk again. A last save there then counts.
        buffer_bytes: Most bytes of host memory per rank for state on its way to the store. None: room for two states.
        elastic_batch: On another number of ranks: 'keep' the samples per step, or let them 'scale' with the ranks.
        fast_forward: After a resume, 'fetch' the batches that were trained on, 'skip' them, or 'auto': skip if exact.
        compile_cache: Keep compiled code at the URL, and load it. Trust all who can write there.
        storage_options: Options of the fsspec file system, such as {'endpoint_url': ...}. Never printed.
        on_event: Function that is called with every event of this rank, or a list of such functions.
        hooks: Old name of on_event, accepted until 1.0.
        gradient_accumulation_steps: Batches of one process that an optimizer step is made of, on the number of
            processes with which the run begins.

    Raises:
        ConfigError: A setting is missing or cannot work.
        StoreError: The store does not answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        every_steps: int | None = None,
        every_seconds: EverySeconds | None = None,
        grace_seconds: Seconds | None = None,
        on_notice: OnNotice | None = None,
        notice_sources: NoticeSources | None = None,
        notice_file: str | None = None,
        acknowledge_notice: bool | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        local_dir: str | None = None,
        local_dir_survives: bool | None = None,
        buffer_bytes: int | None = None,
        elastic_batch: ElasticBatch | None = None,
        fast_forward: FastForward | None = None,
        compile_cache: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
        on_event: Subscriber | Sequence[Subscriber] = (),
        hooks: Sequence[Subscriber] | None = None,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        if type(gradient_accumulation_steps) is not int or gradient_accumulation_steps < 1:
            raise ConfigError(f"gradient_accumulation_steps={gradient_accumulation_steps!r} must be 1, 2, 3 or more")
        config = from_environment(
            url=url,
            every_steps=every_steps,
            every_seconds=every_seconds,
            grace_seconds=grace_seconds,
            on_notice=on_notice,
            notice_sources=notice_sources,
            notice_file=notice_file,
            acknowledge_notice=acknowledge_notice,
            keep_last=keep_last,
            keep_every=keep_every,
            local_dir=local_dir,
            local_dir_survives=local_dir_survives,
            buffer_bytes=buffer_bytes,
            elastic_batch=elastic_batch,
            fast_forward=fast_forward,
            compile_cache=compile_cache,
            storage_options=storage_options,
        )
        self._plain = PlainPyTorch()
        super().__init__(self._plain, config, REMEDIES, subscribers_of(on_event, hooks))
        self._accumulation = Accumulation(
            self._plain,
            gradient_accumulation_steps,
            keeps_batch=config.elastic_batch == "keep",
            say=self._session.program.say,
        )

    def __enter__(self) -> Self:
        """
        Join the run, start the pusher, and take SIGTERM as a notice if this is the main thread.

        Raises:
            ConfigError: Another loop, session or callback of this process is open, or torchrun has started several
                processes that do not know of each other.
        """
        if dist.is_torchelastic_launched() and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
            raise ConfigError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes, and torch.distributed is not initialized, "
                f"so each would train alone. Call torch.distributed.init_process_group() before the `with` block"
            )
        return super().__enter__()

    @property
    def gradient_accumulation_steps(self) -> int:
        """
        Batches of this process that an optimizer step is made of, by which the loop divides the loss.

        On another number of processes than the run began with it is another one, so that a step keeps its number of
        batches over all processes (``elastic_batch="keep"``).
        """
        return self._accumulation.steps

    @property
    def sync_gradients(self) -> bool:
        """
        True if an optimizer step follows the batch that was handed out last. The last batch of an epoch ends a step.

        Without gradient accumulation it is always True. A loader without a length does not say which batch is its last
        one, so the gradients of an incomplete rest wait for the first batches of the next epoch.
        """
        self._check_resumed()
        self._accumulation.is_used = True
        waiting = self._steps.guard.handouts.since_step
        is_within = 0 < max(waiting.values(), default=0) < self._accumulation.steps
        return not is_within or self._position.is_last_batch(waiting)

    def register_model(
        self,
        model: nn.Module,
        optimizers: Optimizer | Iterable[Optimizer] = (),
        schedulers: Part | Iterable[Part] = (),
    ) -> None:
        """
        Save and restore a model and what trains it. Call it before :meth:`resume`, once for each model.

        Args:
            model: The model as it is trained, in its wrapper of DDP, FSDP or Fabric.
            optimizers: The optimizer of its parameters, or several. Their state is stored by the names of the model's
                parameters.
            schedulers: The learning rate scheduler, or several.

        Raises:
            ConfigError: An argument is none of these.
        """
        plain = self._plain
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model={type(model).__name__} must be a torch.nn.Module, as it is trained")
        several = (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)
        for optimizer in several:
            if not isinstance(optimizer, Optimizer):
                raise ConfigError(
                    f"optimizers={type(optimizer).__name__} must be an optimizer of torch or several. Anything else "
                    f"is saved by spot.register(name, object)"
                )
        model = fabric_internals.model_in(model)
        self._session.register(f"model-{len(plain.models)}", ModelPart(model))
        plain.models.append(model)
        for optimizer in several:
            self._session.register(f"optimizer-{len(plain.all_optimizers)}", OptimizerPart(optimizer, model))
            plain.all_optimizers.append(optimizer)
        for scheduler in schedulers if isinstance(schedulers, Iterable) else (schedulers,):
            self._session.register(f"scheduler-{plain.num_schedulers}", scheduler)
            plain.num_schedulers += 1

    def register_loader(self, loader: Any) -> Any:
        """
        Save and restore the position in *loader*, and return it. Call it before :meth:`resume`.

        A loader is known by the order of these calls. With :func:`spot_plugins.data.elastic_loader` the position is
        exact on any number of processes. With torchdata's ``StatefulDataLoader`` it is exact on the same number. In any
        other loader the batches that were trained on are fetched again and thrown away, or passed over, as the setting
        *fast_forward* says.

        Raises:
            ConfigError: The loader has no position that could be restored.
        """
        if self._saved is not None:
            raise ConfigError(
                "register_loader() after spot.resume() is too late to restore the position. Register all loaders before"
            )
        if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
            raise ConfigError(
                f"loader={type(loader).__name__} can be read once at most, so it has no position that could be "
                f"restored. Use a DataLoader, or spot_plugins.data.elastic_loader"
            )
        if fabric_internals.is_loader(loader):
            raise ConfigError(
                "a loader of fabric.setup_dataloaders() numbers its epochs by itself, so a resumed epoch would have "
                "another order. Register the loader that was given to Fabric, and call fabric.to_device(batch)"
            )
        if not any(loader is each for each in self._plain.loaders):
            self._plain.loaders.append(loader)
        return loader

    def register(self, name: str, part: Part) -> None:
        """
        Save and restore another object of the program too, such as a gradient scaler. Call it before :meth:`resume`.

        Args:
            name: A word, equal in every process of the run.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
        """
        super().register(name, part)
        if isinstance(part, GradScaler):
            self._plain.scalers.append(part)

    def _make_saved(self) -> Registered:
        return Registered(self._plain, self._accumulation, self._registered)
