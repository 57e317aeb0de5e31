"""Copies that run while training continues, and the hook that lets every optimizer wait for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ..machine.threads import start_thread
from .devices import is_capturing
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

COPY_S: Final = 600.0
"""Longest wait in seconds for a copy. One that takes longer hangs: host memory takes 100 GB in a minute or two."""

_CALLS_CLOSURE_FIRST: Final = ("torch.optim.", "bitsandbytes.")
"""Modules of optimizers that change nothing before they have called their closure once."""


class Copier:
    """
    Completes snapshots on a thread of its own, one at a time.

    As long as a snapshot is not complete, every optimizer of the process waits for it at the beginning of its step. An
    optimizer that gets a closure, in which Lightning runs forward and backward, waits after the closure.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._issued = threading.Event()  # set: an optimizer may continue
        self._issued.set()
        self._snapshot: Snapshot | None = None
        self._waits_since: float | None = None
        untraced = torch.compiler.disable(self._before_step)  # type: ignore[no-untyped-call]
        self._thread = start_thread(threading.Thread(target=self._run, name="spot-copy", daemon=True))
        self._hook = register_optimizer_step_pre_hook(untraced)

    def do(self, action: Callable[[], None]) -> None:
        """Do *action* on the copying thread, after all earlier ones, with the CUDA device of the calling thread."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            device = torch.cuda.current_device()
            # A thread begins with device 0: every rank of a machine would take memory there.
            self._work.put(lambda: torch.cuda.set_device(device))
        self._work.put(action)

    def complete(self, snapshot: Snapshot, then: Callable[[float, Exception | None], None]) -> None:
        """
        Complete *snapshot*, whose tensors must not change before, then call *then* on the copying thread.

        *then* gets the seconds that training has waited for this copy, and the error if it has failed.
        """
        self.fence()  # of the one before
        self._issued.clear()
        self._snapshot = snapshot
        self._waits_since = None
        self.do(lambda: self._complete(snapshot, then))

    def fence(self) -> None:
        """
        Wait until everything may change again.

        On a CUDA device the copies may still run. Then its current stream waits for them, and not this thread.

        Raises:
            RuntimeError: The current stream is captured as a graph, so it cannot wait for copies outside of it. Or the
                copy hangs.
        """
        if self._snapshot is not None and is_capturing():
            raise RuntimeError("a save is copied during the capture of a CUDA graph: call fence(copied=True) before it")
        if not self._issued.is_set():
            self._waits_since = time.monotonic()
            # wait: COPY_S; training ends, because no weight may change before the device has been given all copies
            if not self._issued.wait(COPY_S):
                raise RuntimeError(stuck_copy())
        if (snapshot := self._snapshot) is not None:
            self._snapshot = None
            snapshot.hold_back()

    def wait_done(self, deadline: float) -> bool:
        """Wait until all that was given to the copying thread is done, or until *deadline*. Return whether it is."""
        done = threading.Event()
        self._work.put(done.set)
        # wait: the deadline of the caller; the copy is not done
        return done.wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))

    def close(self, timeout_s: float) -> bool:
        """Stop after all actions. Return whether they were done within *timeout_s*, because a device may hang."""
        self._hook.remove()
        self._work.put(None)
        # wait: timeout_s of the caller; the memory of the copy is not released
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # wait: until there is work or close() is called; a thread of its own
        while (action := self._work.get()) is not None:
            try:
                action()
            except Exception:
                logger.exception("a bug in spot_plugins; training continues")
            del action  # it may hold state that its optimizer has replaced

    def _complete(self, snapshot: Snapshot, then: Callable[[float, Exception | None], None]) -> None:
        error: Exception | None = None
        waited_s = 0.0
        try:
            snapshot.issue()
        except Exception as caught:  # noqa: BLE001 - it is reported, and must not leave an optimizer waiting
            error = caught
        finally:
            if (since := self._waits_since) is not None:
                waited_s = time.monotonic() - since
            self._issued.set()
        if error is None:
            try:
                # wait: until the device has copied; the copying thread, for which others wait with a deadline
                snapshot.wait()
                if snapshot.torn is not None:
                    raise TornError(snapshot.torn)
            except Exception as caught:  # noqa: BLE001 - see above
                error = caught
        then(waited_s, error)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._snapshot is None:
            return None
        closure = kwargs.get("closure") or next(iter(args[1:]), None)
        if not callable(closure) or not type(optimizer).step.__module__.startswith(_CALLS_CLOSURE_FIRST):
            self.fence()
            return None

        def closure_and_fence(*inner_args: Any, **inner_kwargs: Any) -> Any:
            loss = closure(*inner_args, **inner_kwargs)
            self.fence()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_and_fence}
        return (args[0], closure_and_fence, *args[2:]), kwargs


def stuck_copy() -> str:
    """Return the words for a copy that has not ended within :data:`COPY_S`."""
    return (
        f"the copy of a save has not ended within {COPY_S:.0f} s, so training cannot continue: its device hangs. Look "
        f"at the device and its driver, and start again"
    )


class TornError(Exception):
    """
    Weights or the state of an optimizer changed while they were copied, other than in an optimizer's step.

    Attributes:
        name: The first tensor that changed.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name!r} was changed while it was copied, by something else than an optimizer's step"
