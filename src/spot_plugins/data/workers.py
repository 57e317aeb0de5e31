"""Keeping the worker processes of loaders alive through a notice, and ending them at once when leaving."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.utils.data._utils as torch_data

from .unwrap import plain_loader


class _Shielded:
    """Move the worker into a process group of its own, then run the *original* init function, if any."""

    # A class, not a closure: with the spawn start method it travels to the worker by pickle.

    def __init__(self, original: Callable[[int], object] | None) -> None:
        self.original = original

    def __call__(self, worker_id: int) -> None:
        os.setpgid(0, 0)
        if "SLURM_JOB_ID" in os.environ:
            _obey_parent_alone()
        if self.original is not None:
            self.original(worker_id)


def shield(worker_init_fn: Callable[[int], object] | None) -> Callable[[int], object]:
    """
    Return a ``worker_init_fn`` that keeps signals to the trainer's process group away from the worker.

    torchrun sends SIGTERM to the whole group. A worker dies of it within milliseconds, and the trainer with
    ``RuntimeError: DataLoader worker exited unexpectedly``, before it has saved anything. The shield goes up
    when the worker runs its init function: a signal to the group before that still hits it.

    SLURM signals every process of a step by itself. There a worker ends by SIGTERM only if its parent sends it.
    """
    return worker_init_fn if isinstance(worker_init_fn, _Shielded) else _Shielded(worker_init_fn)


def _obey_parent_alone() -> None:
    """Ignore SIGTERM from anyone but the parent, and SIGUSR1, in this process, which has one thread."""
    parent = os.getppid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # later threads inherit it

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)  # as torch's own handler, which this signal no longer reaches

    threading.Thread(target=watch, name="spot-shield", daemon=True).start()


def shield_workers(loader: Any) -> None:
    """
    Apply :func:`shield` to an existing loader, before its first iterator is made. Twice is the same as once.

    A loader prepared by Accelerate is unwrapped; one without worker processes is left as it is.
    """
    plain = plain_loader(loader)
    if getattr(plain, "num_workers", 0) > 0:
        plain.worker_init_fn = shield(plain.worker_init_fn)


def end_shielded_workers() -> None:
    """
    Kill this process' shielded workers and let no loader wait for them. For a process that is about to end.

    Left to itself, torch takes five seconds and more for each worker that is busy: it waits that long for it
    to finish what it does, and as long again after a SIGTERM. No loader of this process works afterwards.
    """
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise "DataLoader worker is killed by signal" in the main thread, in the
        # middle of whatever it does to leave in good order. Only the main thread may change handlers, and
        # only there can it have been installed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What torch itself sets when the interpreter ends: from then on no iterator touches the queues and locks
    # that it shares with its workers. A killed worker may have died holding one of them, and the wait would
    # be forever.
    torch_data._set_python_exit_flag()
    for child in multiprocessing.active_children():
        if child.pid is not None and child.daemon and _has_shield(child.pid):
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(child.pid, signal.SIGKILL)


def _has_shield(pid: int) -> bool:
    """Whether *pid* leads a group of its own in our session. The pusher, say, has its own session."""
    try:
        return os.getpgid(pid) == pid and os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return False
