"""The shared buffers of a rank, and the limit on their memory."""

from __future__ import annotations

import logging
import time
from typing import Final

from ..errors import ConfigError, StoreError
from ..push import Pusher
from .shared_buffer import SharedBuffer

logger = logging.getLogger(__name__)
ROOM_BYTES: Final = 1024**2  # a metric that appears later must not cost a new buffer and its page faults
MAX_BUFFERS: Final = 2  # one being pushed, one for a save that cannot wait: at most twice the state


class Buffers:
    """The shared buffers of a rank, as few as possible: fresh memory is slow, and training needs the rest."""

    def __init__(self, pusher: Pusher, max_bytes: int | None) -> None:
        self._pusher = pusher
        self._max_bytes = max_bytes
        self._buffers: list[SharedBuffer] = []
        self._frozen: list[SharedBuffer] = []
        self._num_made = 0

    def prepare(self, num_bytes: int, num_frozen_bytes: int) -> None:
        """Make the buffers that the first save needs."""
        self._buffers.append(self._make(num_bytes))
        if num_frozen_bytes:
            self._frozen.append(self._make(num_frozen_bytes))

    def take(self, num_bytes: int, deadline: float) -> SharedBuffer:
        """
        Return a free buffer of at least *num_bytes*.

        Raises:
            ConfigError: *num_bytes* is more than all buffers may take.
            StoreError: All are in use, and none became free before *deadline* (monotonic).
        """
        self.check_size(num_bytes)
        if not self._may_grow(num_bytes):
            numbers = {buffer.number for buffer in self._buffers}
            started = time.monotonic()
            if not self._pusher.ledger.wait_released(numbers, deadline):
                raise StoreError("put", "", "earlier steps are still being pushed, and hold all memory for saves")
            if (waited_s := time.monotonic() - started) > 0.1:
                logger.warning("training waited %.1f s for an earlier push. Save less often", waited_s)
        for buffer in self._free(self._buffers):
            if buffer.num_bytes >= num_bytes:
                return buffer
            self._buffers.remove(buffer)
            self._drop(buffer)
        self._buffers.append(self._make(num_bytes))
        return self._buffers[-1]

    def take_frozen(self, num_bytes: int) -> SharedBuffer:
        """Return a free buffer of at least *num_bytes* for frozen tensors. It is kept until :meth:`retire`."""
        for buffer in self._free(self._frozen):
            if buffer.num_bytes >= num_bytes:
                return buffer
        self._frozen.append(self._make(num_bytes))
        return self._frozen[-1]

    def retire(self) -> None:
        """Close the buffers for frozen tensors that are free."""
        for buffer in self._free(self._frozen):
            self._frozen.remove(buffer)
            self._drop(buffer)

    @property
    def has_room(self) -> bool:
        """True if :meth:`take` would find a buffer without waiting."""
        return self._may_grow(0) or bool(self._free(self._buffers))

    def check_size(self, num_bytes: int) -> None:
        """Raise :exc:`ConfigError` if one state of *num_bytes* is more than there may be."""
        if self._max_bytes is not None and num_bytes + ROOM_BYTES > self._max_bytes:
            raise ConfigError(
                f"buffer_bytes={self._max_bytes} is too small for the state of this rank: give at least "
                f"{num_bytes + ROOM_BYTES}, or None"
            )

    def close(self) -> None:
        """Close all. The pusher process keeps its own mappings of those that it needs."""
        for buffer in self._buffers + self._frozen:
            self._drop(buffer)

    def _free(self, buffers: list[SharedBuffer]) -> list[SharedBuffer]:
        return [each for each in buffers if not self._pusher.ledger.holds(each.number)]

    def _may_grow(self, num_bytes: int) -> bool:
        """Return whether another buffer may be made, of *num_bytes* or of the size of the present ones."""
        if self._max_bytes is None or not self._buffers:
            return len(self._buffers) < MAX_BUFFERS
        taken = sum(buffer.num_bytes for buffer in self._buffers)
        return taken + max(num_bytes + ROOM_BYTES, self._buffers[0].num_bytes) <= self._max_bytes

    def _make(self, num_bytes: int) -> SharedBuffer:
        self._num_made += 1
        return SharedBuffer(self._num_made, num_bytes + ROOM_BYTES)

    def _drop(self, buffer: SharedBuffer) -> None:
        self._pusher.forget_buffer(buffer.number)
        buffer.close()
