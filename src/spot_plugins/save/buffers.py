"""The shared buffers of a rank, and the limit on their memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import ConfigError, StoreError
from ..machine.host_memory import NotEnoughError, check_available, has_available
from ..push import Pusher
from .shared_buffer import SharedBuffer

logger = logging.getLogger(__name__)
ROOM_BYTES: Final = 1024**2  # a metric that appears later must not cost a new buffer and its page faults
MAX_BUFFERS: Final = 2  # one being pushed, one for a save that cannot wait: at most twice the state


class _Making:
    """One buffer that the copying thread makes."""

    def __init__(self) -> None:
        self.is_wanted = True
        self.failure: BaseException | None = None
        self.has_ended = False


class _UnwantedError(Exception):
    """Another buffer became free earlier."""


class Pool:
    """
    Buffers that take each other's place. The copying thread makes and closes them, the training thread takes them.

    Args:
        pusher: Reads the buffers, and knows which of them it holds.
        do: Does an action on the copying thread.
        next_number: Returns the number of a new buffer.
    """

    def __init__(
        self, pusher: Pusher, do: Callable[[Callable[[], None]], None], next_number: Callable[[], int]
    ) -> None:
        self._pusher = pusher
        self._do = do
        self._next_number = next_number
        self._making: _Making | None = None
        self._has_warned = False
        self.has_made = False
        """True if the machine had memory for at least one."""
        self.buffers: list[SharedBuffer] = []
        """All buffers that are made, also those that the pusher process reads."""

    def free(self) -> list[SharedBuffer]:
        """Return the buffers that no step needs."""
        return [each for each in list(self.buffers) if not self._pusher.ledger.holds(each.number)]

    def make(self, num_bytes: int) -> _Making:
        """Begin to make a buffer of *num_bytes*, unless one is being made. Return the one that is."""
        if (making := self._making) is None:
            self._making = making = _Making()
            self._do(lambda: self._make(making, num_bytes))
        return making

    def take(self, num_bytes: int, may_grow: Callable[[], bool], *, deadline: float, make_by: float) -> SharedBuffer:
        """
        Return a free buffer of at least *num_bytes*: one that becomes free or one that is made, whichever is earlier.

        Args:
            num_bytes: Its size.
            may_grow: Returns whether a further buffer may be made.
            deadline: The end of the wait (monotonic) for a buffer that the pusher process reads.
            make_by: The end of the wait (monotonic) if a buffer is being made.

        Raises:
            StoreError: There was none in time.
            NotEnoughError: The machine has too little memory for one, and there is no other one.
            OSError, MemoryError: The system has no memory or no descriptor for one.
        """
        failure: BaseException | None = None
        while True:
            for buffer in self.free():
                if buffer.num_bytes >= num_bytes:
                    self._cancel()
                    return buffer
                self.drop(buffer)
                failure = None
            making = self.make(num_bytes + ROOM_BYTES) if failure is None and may_grow() else None
            if failure is not None and not (self.buffers and isinstance(failure, NotEnoughError)):
                raise failure
            self._wait(making, make_by if making is not None else deadline)
            if making is not None:
                failure = making.failure

    def drop(self, buffer: SharedBuffer) -> None:
        """Give back the memory of *buffer*, on the copying thread."""
        self.buffers.remove(buffer)
        self._do(lambda: self._close([buffer]))

    def close(self) -> None:
        """Give back all memory, on the copying thread and after its last copy."""
        self._cancel()
        self._do(lambda: self._close(self.buffers))

    def _close(self, buffers: list[SharedBuffer]) -> None:
        for buffer in buffers:
            buffer.close(gives_back=not self._pusher.forget_buffer(buffer.number))

    def _cancel(self) -> None:
        """Give back what is made by now of a buffer that nobody waits for."""
        if (making := self._making) is not None:
            making.is_wanted = False

    def _wait(self, making: _Making | None, until: float) -> None:
        """Wait until a buffer is free or *making* has ended. Raise :exc:`StoreError` after *until*."""
        numbers = {buffer.number for buffer in self.buffers}
        started = time.monotonic()
        if making is not None:
            # wait: the deadline of the caller; the step is not saved
            if not self._pusher.ledger.wait_released(numbers, until, lambda: making.has_ended):
                raise StoreError("put", "", "the memory for saves was not made in time", False)
        elif not self._pusher.ledger.wait_released(numbers, until):
            raise StoreError("put", "", "earlier steps are still being pushed, and hold all memory for saves")
        elif (waited_s := time.monotonic() - started) > 0.1:
            logger.warning("training waited %.1f s for an earlier push. Save less often", waited_s)

    def _make(self, making: _Making, num_bytes: int) -> None:
        """Make a buffer. On the copying thread."""

        def look(left_bytes: int) -> None:
            if not making.is_wanted:
                raise _UnwantedError
            check_available(left_bytes)

        try:
            buffer = SharedBuffer(self._next_number(), num_bytes, look)
            self.buffers.append(buffer)
            self.has_made = True
            if buffer.pin_error and not self._has_warned:
                self._has_warned = True
                error = buffer.pin_error
                logger.warning("host memory for saves cannot be pinned (CUDA error %s), so copies are slower", error)
        except _UnwantedError:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever waits for the buffer raises it
            making.failure = error
        finally:
            making.has_ended = True
            self._making = None
            with self._pusher.ledger.changed:
                self._pusher.ledger.changed.notify_all()


class Buffers:
    """The shared buffers of a rank, as few as possible: fresh memory is slow, and training needs the rest."""

    def __init__(self, pusher: Pusher, max_bytes: int | None, do: Callable[[Callable[[], None]], None]) -> None:
        self._max_bytes = max_bytes
        self._num_made = 0
        self.active = Pool(pusher, do, self._next_number)
        """The buffers for what is trained."""
        self.frozen = Pool(pusher, do, self._next_number)
        """The buffers for frozen tensors, each needed until they are stored."""

    def prepare(self, num_bytes: int, num_frozen_bytes: int) -> None:
        """
        Begin to make the buffers that the first save needs. If that fails, the first save tries again.

        Raises:
            ConfigError: The machine has too little memory for them.
        """
        sizes = {self.active: num_bytes + ROOM_BYTES}
        if num_frozen_bytes:
            sizes[self.frozen] = num_frozen_bytes + ROOM_BYTES
        try:
            check_available(sum(sizes.values()))
        except MemoryError as error:
            raise ConfigError(str(error)) from None
        except OSError:  # no descriptor is left for a look at the memory
            return
        for pool, size in sizes.items():
            pool.make(size)

    def take(self, num_bytes: int, *, deadline: float, make_by: float) -> SharedBuffer:
        """
        Return a free buffer of at least *num_bytes*. See :meth:`Pool.take`.

        Raises:
            ConfigError: *num_bytes* is more than all buffers may take, or more than the machine has for the first one.
        """
        self.check_size(num_bytes)
        try:
            return self.active.take(num_bytes, lambda: self._may_grow(num_bytes), deadline=deadline, make_by=make_by)
        except NotEnoughError as error:
            if not self.active.has_made:
                raise ConfigError(str(error)) from None
            raise

    def take_again(self, num_bytes: int, deadline: float) -> SharedBuffer:
        """
        Return a buffer of at least *num_bytes* in place of one that the pusher has done with. See :meth:`Pool.take`.

        Raises:
            ConfigError: *num_bytes* is more than all buffers may take.
        """
        self.check_size(num_bytes)
        return self.active.take(num_bytes, lambda: not self.active.buffers, deadline=deadline, make_by=deadline)

    def take_frozen(self, num_bytes: int, *, make_by: float) -> SharedBuffer:
        """Return a free buffer of at least *num_bytes* for frozen tensors. It is kept until :meth:`retire`."""
        return self.frozen.take(num_bytes, lambda: True, deadline=make_by, make_by=make_by)

    def retire(self) -> None:
        """Close the buffers for frozen tensors that are free."""
        for buffer in self.frozen.free():
            self.frozen.drop(buffer)

    @property
    def has_room(self) -> bool:
        """True if :meth:`take` would find a buffer without waiting for a push."""
        if self.active.free() or not self.active.buffers:
            return True
        return self._may_grow(0) and has_available(self.active.buffers[0].num_bytes)

    def check_size(self, num_bytes: int) -> None:
        """Raise :exc:`ConfigError` if one state of *num_bytes* is more than there may be."""
        if not self.fits(num_bytes):
            raise ConfigError(
                f"buffer_bytes={self._max_bytes} is too small for the state of this rank: give at least "
                f"{num_bytes + ROOM_BYTES}, or None"
            )

    def fits(self, num_bytes: int) -> bool:
        """Return whether one state of *num_bytes* is not more than there may be."""
        return self._max_bytes is None or num_bytes + ROOM_BYTES <= self._max_bytes

    def close(self) -> None:
        """Close all on the copying thread. The pusher process keeps its own mappings of those that it needs."""
        self.active.close()
        self.frozen.close()

    def _may_grow(self, num_bytes: int) -> bool:
        """Return whether another buffer may be made, of *num_bytes* or of the size of the present ones."""
        present = list(self.active.buffers)
        if self._max_bytes is None or not present:
            return len(present) < MAX_BUFFERS
        taken = sum(buffer.num_bytes for buffer in present)
        return taken + max(num_bytes + ROOM_BYTES, present[0].num_bytes) <= self._max_bytes

    def _next_number(self) -> int:
        self._num_made += 1
        return self._num_made
