"""Worker processes of loaders: keep them alive during a notice, and end them at once when the trainer leaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

from .internals import forget_workers
from .unwrap import plain_loader


class _Shielded:
    """A ``worker_init_fn`` that moves the worker into its own process group, then calls *original* if there is one."""

    # A class and not a closure, because with the spawn start method it travels to the worker by pickle.

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

    torchrun sends SIGTERM to the whole group. Without a shield a worker ends within milliseconds. The trainer then
    fails with ``RuntimeError: DataLoader worker exited unexpectedly`` before it has saved anything. A signal that
    arrives before the worker runs its init function still reaches it.

    SLURM sends a signal to every process of a step. There a shielded worker obeys SIGTERM only from its parent.
    """
    return worker_init_fn if isinstance(worker_init_fn, _Shielded) else _Shielded(worker_init_fn)


def _obey_parent_alone() -> None:
    """Ignore signals to the step, and SIGTERM from any process but the parent. The worker has one thread yet."""
    parent = os.getppid()
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # later threads inherit it

    def wait_for_parent() -> None:
        # wait: until the parent sends SIGTERM; a thread of its own, which ends with the worker
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)  # like torch's own handler, which a blocked signal does not reach

    threading.Thread(target=wait_for_parent, name="spot-shield", daemon=True).start()


def shield_workers(loader: object) -> None:
    """
    Shield the workers of an existing loader. Call it before the first iterator is made; a second call does nothing.

    A loader prepared by Accelerate is unwrapped first. A loader without worker processes is left as it is.
    """
    plain = plain_loader(loader)
    if getattr(plain, "num_workers", 0) > 0:
        plain.worker_init_fn = shield(plain.worker_init_fn)


def end_shielded_workers() -> None:
    """
    Kill the shielded workers of this process and let no loader wait for them. Call it only when the process ends.

    torch by itself waits five seconds for each busy worker, and five more after a SIGTERM. No loader of this process
    works after this call.
    """
    forget_workers()
    for child in multiprocessing.active_children():
        if child.pid is not None and child.daemon and _has_shield(child.pid):
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(child.pid, signal.SIGKILL)


def _has_shield(pid: int) -> bool:
    """Return True if *pid* leads a process group in our session. The pusher, in contrast, has its own session."""
    try:
        return os.getpgid(pid) == pid and os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return False
