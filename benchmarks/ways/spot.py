"""This project, by its public API: a session without a host around it."""

from __future__ import annotations

import time

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, LocalWriteFailed, Resumed, SaveAbandoned, Staged, WrittenLocally
from spot_plugins.session import SpotSession

from .base import Saved, Way

NEVER = 10**9  # steps: only what is asked for is saved


class Spot(Way):
    """Saves below *url*; into a folder on this disk if it is None, and then writes only once."""

    def __init__(self, training, folder, url=None, local_dir=None, storage_options=None, keep_last=2):
        super().__init__(training, folder)
        self.config = SpotConfig(
            url=url or f"file://{folder}/spot",
            local_dir=local_dir,
            storage_options=storage_options or {},
            every_steps=NEVER,
            keep_last=keep_last,
        )
        self.heard = {}
        """Per kind of event the last one of each step, with the time at which it was heard."""
        self._saved = {}
        self.session = self._open()

    def _open(self):
        session = SpotSession(self.config, on_event=[self._hear])
        session.register_model(self.training.model, [self.training.optimizer])
        session.resume()
        return session

    def _hear(self, event):
        match event:
            case Staged() | WrittenLocally() | Resumed():
                self.heard[type(event), event.step] = (time.perf_counter(), event)
            case Committed():
                self.heard[Committed, event.step] = (time.perf_counter(), event)
                self._saved[event.step].finish()
            case SaveAbandoned():
                self._saved[event.step].finish(RuntimeError(f"step {event.step} was abandoned: {event.reason}"))
            case LocalWriteFailed():
                self._saved[event.step].finish(RuntimeError(f"the disk took no copy: {event.reason}"))

    def save(self, step):
        saved = self._saved[step] = Saved()
        self.session.save(step)
        return saved

    def after_step(self, step):
        self.session.after_step(step)

    def restore(self, step):
        """Restore as a new process life does: with a new session. Some of its time is joining the run."""
        self.heard.pop((Resumed, step), None)
        self.session.close()
        self.session = self._open()
        if (Resumed, step) not in self.heard:
            raise RuntimeError(f"step {step} was not resumed")

    def forget(self, step):
        """Nothing: it prunes by itself."""

    def close(self):
        self.session.close()
