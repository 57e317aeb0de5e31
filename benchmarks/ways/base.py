"""The base class of all ways to save."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import nullcontext


class Saved:
    """A save that is in progress or done."""

    def __init__(self):
        self.at = None
        """Time at which the save was on disk, by ``time.perf_counter()``. None before that."""
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
        """Wait until the save is done. Raise its error, if there is one."""
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
    """One way to save a training, into a folder that all ranks share."""

    needs_group = False
    """True if the way needs a process group even on a single rank."""

    wraps = False
    """True if the way wraps the model for data parallelism itself."""

    def __init__(self, training, folder):
        self.training = training
        self.folder = folder

    @classmethod
    def why_not(cls, device):
        """Return the reason why the way cannot run here, or None."""
        return None

    def run(self, body):
        """Call *body* in a context in which this way can save."""
        body()

    def save(self, step):
        """Save after *step*, and return a :class:`Saved`. The time until the return is the stall."""
        raise NotImplementedError

    def load(self, step):
        """Restore the save of *step* into the tensors of the training. Return the seconds."""
        self.training.synchronize()
        started = time.perf_counter()
        self.restore(step)
        self.training.synchronize()
        return time.perf_counter() - started

    def restore(self, step):
        raise NotImplementedError

    def guard(self):
        """Return a context for the update of the weights. Entering it waits for a copy in progress."""
        return nullcontext()

    def after_step(self, step):
        """Report that a step is done."""

    def path_of(self, step):
        return self.folder / f"step-{step}"

    def forget(self, step):
        """Remove the save of *step*, so that the disk does not fill."""
        shutil.rmtree(self.path_of(step), ignore_errors=True)
        self.path_of(step).unlink(missing_ok=True)

    def close(self):
        """Close everything that is open, after all saves are done."""
