"""The speeds of the latest saves of this rank, and the saves that are still being pushed. Callers hold a lock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..events import Committed, Staged, WrittenLocally

COPY_BYTES_PER_S: Final = 0.5e9
"""
Assumed speed of the first copy to host memory.

It needs fresh memory, which one thread of a slow machine gets at 2 GB/s.
"""

COMMIT_S: Final = 5.0
"""
Assumed seconds of the first push that do not depend on its bytes.

On a quiet machine and a fast store they are a tenth of a second. One put says nothing about a busy machine.
"""


class SaveSpeeds:
    """
    The latest measured size and speeds of a save, and estimates until one is measured.

    Args:
        put_bytes_per_s: An estimate for the store. None if there is none.
    """

    num_bytes: int | None = None
    """An estimate for the size of a save. None if there is none."""

    def __init__(self, put_bytes_per_s: float | None = None) -> None:
        self._put_bytes_per_s = put_bytes_per_s
        self._staged: Staged | None = None
        self._disk_bytes_per_s: float | None = None
        self._store_bytes_per_s: float | None = None
        self._commit_s = 0.0

    @property
    def is_estimated(self) -> bool:
        """True if no save was measured yet."""
        return self._staged is None or not self._store_bytes_per_s

    def on_staged(self, event: Staged) -> None:
        """Keep the size of a save and the speed of its copy to host memory."""
        self._staged = event

    def on_written(self, event: WrittenLocally) -> None:
        """Keep the speed of the local disk."""
        self._disk_bytes_per_s = event.write_bytes_per_s

    def on_not_written(self) -> None:
        """Forget the speed of the local disk, because the disk has failed. Nothing may be promised of it."""
        self._disk_bytes_per_s = None

    def on_committed(self, event: Committed, *, was_alone: bool) -> None:
        """Keep the speed of the store. If the push *was_alone*, its other seconds are those of a commit."""
        speed = event.put_bytes_per_s
        if speed and was_alone:
            self._commit_s = max(0.0, event.push_s - event.num_bytes / speed)
        self._store_bytes_per_s = speed

    def fields(self) -> Mapping[str, Any]:
        """Return the fields of :class:`~.plan.Situation` that are measured or estimated here."""
        staged, speed = self._staged, self._store_bytes_per_s
        return {
            "num_bytes": self.num_bytes if staged is None else staged.num_bytes,
            "stall_s": 0.0 if staged is None else staged.stall_s,
            "stage_bytes_per_s": COPY_BYTES_PER_S if staged is None else staged.num_bytes / max(staged.copy_s, 1e-9),
            "disk_bytes_per_s": self._disk_bytes_per_s,
            "store_bytes_per_s": speed or self._put_bytes_per_s,
            "commit_s": COMMIT_S if self.is_estimated else self._commit_s,
            "is_estimated": self.is_estimated,
        }


class InFlight:
    """The steps in host memory that are not committed yet, each with the monotonic time at which it was staged."""

    def __init__(self) -> None:
        self.staged_at: dict[int, float] = {}
        """Monotonic time of staging, by step."""
        self.is_failing = False
        """True if the store has refused a push since the last commit."""

    @property
    def is_steady(self) -> bool:
        """True if one push is in flight and the store takes it, so that the push waits for nothing else."""
        return not self.is_failing and len(self.staged_at) == 1

    def add(self, step: int, now: float) -> None:
        """Add a staged step."""
        self.staged_at[step] = now

    def remove(self, step: int) -> None:
        """Remove a step that is committed or abandoned."""
        self.staged_at.pop(step, None)

    def seconds_left(self, push_s: float, now: float) -> float:
        """
        Estimate the seconds until every push finishes, if each one takes *push_s*.

        A push that is already overdue is expected to take as long again as it is late. If the store fails, the result
        is infinity.
        """
        if not self.staged_at:
            return 0.0
        if self.is_failing:
            return math.inf
        end = 0.0
        for staged_at in self.staged_at.values():
            end = max(end, staged_at) + push_s
        return abs(end - now)
