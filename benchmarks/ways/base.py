"""What every way to save can do."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import nullcontext


class Saved:
    """A save under way, or done."""

    def __init__(self):
        self.at = None
        """When it was on disk, by ``time.perf_counter()``; None before."""
        self._done = threading.Event()
        self._error = None

    def finish(self, error=None):
        self._error = error
        self.at = time.perf_counter()
        self._done.set()

    @property
    def done(self):
        return self._done.is_set()

    def wait(self, timeout_s=600.0):
        """Wait until it is done. Raise what went wrong."""
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"a save did not end within {timeout_s} s")
        if self._error is not None:
            raise self._error

    @classmethod
    def at_once(cls):
        saved = cls()
        saved.finish()
        return saved

    @classmethod
    def of_future(cls, future):
        saved = cls()
        future.add_done_callback(lambda done: saved.finish(done.exception()))
        return saved


class Way:
    """One way to save the training given, into *folder*, which all ranks share."""

    needs_group = False
    """Whether it wants a process group even on a single rank."""

    wraps = False
    """Whether it wraps the model for data parallelism itself."""

    def __init__(self, training, folder):
        self.training = training
        self.folder = folder

    @classmethod
    def why_not(cls, device):
        """Return why it cannot run here, or None."""
        return None

    def run(self, body):
        """Call *body*, from where this way can save."""
        body()

    def save(self, step):
        """Save now, behind *step*; return a :class:`Saved`. The time until this returns is the stall."""
        raise NotImplementedError

    def load(self, step):
        """Restore what was saved behind *step* into the tensors of the training. Return its seconds."""
        self.training.synchronize()
        started = time.perf_counter()
        self.restore(step)
        self.training.synchronize()
        return time.perf_counter() - started

    def restore(self, step):
        raise NotImplementedError

    def guard(self):
        """Return a context for the update of the weights, in which a copy under way is waited for."""
        return nullcontext()

    def after_step(self, step):
        """Hear that a step is done."""

    def place(self, step):
        return self.folder / f"step-{step}"

    def forget(self, step):
        """Remove what was saved, so that the disk does not fill."""
        shutil.rmtree(self.place(step), ignore_errors=True)
        self.place(step).unlink(missing_ok=True)

    def close(self):
        """Let go, once all is saved."""
