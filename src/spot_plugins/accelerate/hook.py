"""The hook, which translates calls of a loop with Accelerate into calls of the session and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from ..config import ElasticBatch, EverySeconds, FastForward, NoticeSources, OnNotice, Seconds, from_environment
from ..events import Subscriber
from ..loop import Loop
from ..program import subscribers_of
from . import internals
from .framework import AccelerateFramework
from .guarded import REMEDIES
from .prepared import Prepared, check_supported


class SpotHook(Loop):
    """
    Save on steps or seconds, leave safely when the machine is taken, and continue where the loop was.

    A loop that uses everything::

        with SpotHook(accelerator, "s3://bucket/run-7", every_steps=100) as spot:
            model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
            progress = spot.resume()
            for epoch in spot.epochs(num_epochs):
                for batch in spot.batches(loader):
                    with accelerator.accumulate(model):
                        ...
                    spot.after_step()
                with spot.pause():
                    for batch in validation_loader:
                        spot.check()
                        ...

    After a SIGTERM the state is saved and stored, and :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves
    the block. Leaving the block at its end saves the end of the training and waits until it is stored.

    A step is one in which an optimizer stepped, also if the scaler left out the update because of an overflow.
    Nothing is saved within gradient accumulation.

    A resumed program runs its loop again from the head of the epoch, with the batches that are left. Code that
    follows :meth:`after_step` in the body is not repeated for the saved step. Code that follows the last batch of an
    epoch is repeated, if the saved step is the last one of that epoch. Every loader yields the same samples in the
    same order, but random numbers drawn *within* a data set are the same only with
    :func:`spot_plugins.data.elastic_loader`.

    Every rank makes one. A ``SPOT_*`` variable stands for each setting that is None: ``SPOT_EVERY_STEPS`` for
    *every_steps*, and so on for all but *storage_options*. :class:`~spot_plugins.config.SpotConfig` says more of each.

    Args:
        accelerator: The accelerator that will prepare model, optimizer, scheduler and loaders.
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

    Raises:
        ConfigError: A setting is missing or cannot work.
        StoreError: The store does not answer.
    """

    _remedies: Mapping[Any, str] = REMEDIES

    def __init__(
        self,
        accelerator: Accelerator,
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
    ) -> None:
        internals.check(accelerator)
        check_supported(accelerator)
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
        super().__init__(AccelerateFramework(accelerator), config, self._remedies, subscribers_of(on_event, hooks))
        self._accelerator = accelerator
        self._keep_batch = config.elastic_batch == "keep"

    def _make_saved(self) -> Prepared:
        return Prepared(
            self._accelerator, self._registered, self._told, self._session.program.say, keep_batch=self._keep_batch
        )
