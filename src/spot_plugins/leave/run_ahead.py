"""The distance between the host, whose time is measured, and a device that does the work of its steps later."""

from __future__ import annotations

import torch

from ..save.devices import DEVICES, Event


class RunAhead:
    """
    Keeps the host at most one step ahead of the device, so that steps take as long on the host.

    Without a limit the host may have queued seconds of work, for example as replays of CUDA graphs. All methods are
    called on the training thread, at the end of a step.
    """

    def __init__(self) -> None:
        self._last: list[Event] | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps that a device may still have to do."""
        return 1 if self._last else 0

    @property
    def is_limited(self) -> bool:
        """True if :meth:`limit` was called."""
        return self._last is not None

    def limit(self) -> None:
        """Wait until every device has done the steps before this one. The first time, wait for this one as well."""
        events = [
            kind.current_stream(torch.device(name)).record_event() for name, kind in DEVICES.items() if kind.is_used()
        ]
        for event in events if self._last is None else self._last:
            # wait: until the device has done a step; a device that hangs stops the training itself
            event.synchronize()
        self._last = events
