"""This project, through its public API, as a session without a host."""

from __future__ import annotations

import time

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, LocalWriteFailed, Resumed, SaveAbandoned, Staged, WrittenLocally
from spot_plugins.session import SpotSession

from .base import Saved, Way

NEVER = 10**9  # steps, so that only explicit saves are made


class Spot(Way):
    """A session that saves to *url*. None: a folder on this disk, so that each byte is written only once."""

    def __init__(self, training, folder, url=None, local_dir=None, storage_options=None, keep_last=2):
        super().__init__(training, folder)
        self.config = SpotConfig(
            url=url or f"file://{folder}/spot",
            local_dir=local_dir,
            storage_options=storage_options or {},
            every_steps=NEVER,
            keep_last=keep_last,
        )
        self.received = {}
        """The last event of each kind and step, with the time at which it was received."""
        self._saved = {}
        self.session = self._open()

    def _open(self):
        session = SpotSession(self.config, on_event=[self._on_event])
        session.register_model(self.training.model, [self.training.optimizer])
        session.resume()
        return session

    def _on_event(self, event):
        match event:
            case Staged() | WrittenLocally() | Resumed():
                self.received[type(event), event.step] = (time.perf_counter(), event)
            case Committed():
                self.received[Committed, event.step] = (time.perf_counter(), event)
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
        """Restore with a new session, as a new attempt does. Part of the time is for joining the run."""
        self.received.pop((Resumed, step), None)
        self.session.close()
        self.session = self._open()
        if (Resumed, step) not in self.received:
            raise RuntimeError(f"step {step} was not resumed")

    def forget(self, step):
        """Do nothing, because the session prunes by itself."""

    def close(self):
        self.session.close()
