"""One loader that is trained on, with its position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config import FastForward
from ..data import LoaderPosition, shield_workers
from ..data.replayed import MISSING
from ..errors import ConfigError


class TrainingLoader:
    """
    One loader that is trained on, with its position.

    The position counts in epochs of the program. If the loader is repeated without an end, its passes are counted
    instead, and they do not depend on the epochs.
    """

    def __init__(self, loader: Any, world_size: int, fast_forward: FastForward) -> None:
        self.loader = loader
        self.position = LoaderPosition(loader, world_size, fast_forward=fast_forward)
        self.num_trained = 0
        """Batches of its epoch that were trained on, also by earlier processes."""
        self.begun_epoch: int | None = None
        """The epoch of the last iterator that this process made."""
        self.loaded_epoch: int | None = None
        """The epoch of a restored position, until an iterator is made from it."""
        self.num_yielded = 0
        """Batches that the iterator has yielded."""
        self.is_repeated: bool | None = None
        """True if the loader is repeated without an end. None until this is known."""
        self.left_epoch: int | None = None
        """The epoch in which the loop over this loader was left by ``break``, if it was."""
        self._is_left_since_step = False
        self._num_yielded_by_all: int | None = None  # by all loaders, when this one was left
        self._num_before = 0
        self._at_step: dict[str, Any] | None = None

    @property
    def num_handed_out(self) -> int:
        """Batches of its epoch that were handed out, also by earlier processes if they were trained on."""
        return self._num_before + self.num_yielded

    @property
    def is_ahead(self) -> bool:
        """True if a batch was handed out and does not count as trained on yet."""
        return self.begun_epoch is not None and self.num_handed_out != self.num_trained

    def num_before(self, epoch: int) -> int:
        """Return the number of batches of *epoch* that were done before an iterator that begins now."""
        return self.num_trained if epoch == self.loaded_epoch else 0

    def require_repeated(self, repeat: bool) -> None:
        """Raise :exc:`ConfigError` if the loader was used in the other way before, because its position is another."""
        if self.is_repeated is None:
            self.is_repeated = repeat
        if self.is_repeated != repeat:
            raise ConfigError(
                f"repeat={repeat} differs from repeat={self.is_repeated}, with which this loader was used before, in "
                f"this process or in the checkpoint. Use the same, or start anew at another URL"
            )

    def begin(self, epoch: int) -> Iterator[Any]:
        """Return an iterator of *epoch*, or of what is left of it."""
        self._num_before = self.num_before(epoch)
        self.num_yielded = 0
        self.begun_epoch, self.loaded_epoch = epoch, None
        self.position.begin_epoch(epoch)
        self.mark_step()
        shield_workers(self.loader)
        iterator: Iterator[Any] = iter(self.loader)
        self.position.fast_forward(iterator)
        return iterator

    def fetch(self, iterator: Iterator[Any], *, ahead: bool) -> Any:
        """Return the next batch of *iterator*, or MISSING. Set *ahead* if it fetches one batch more than it yields."""
        if ahead:
            return self.position.fetch_ahead(iterator, self.num_yielded)
        self.position.note_fetch(self.num_yielded)
        return next(iterator, MISSING)

    def leave(self, num_yielded_by_all: int) -> None:
        """Take note that the loop over this loader was left, when all loaders had yielded so many batches."""
        self.left_epoch = self.begun_epoch
        self._is_left_since_step = True
        self._num_yielded_by_all = num_yielded_by_all if self.is_ahead else None

    def confirm_left(self, num_yielded_by_all: int) -> None:
        """Forget at a step that this loader was left, if its last batch was trained on only after that."""
        if self._num_yielded_by_all == num_yielded_by_all:  # as in `train_on(next(spot.batches(loader)))`
            self.left_epoch = None
        self._num_yielded_by_all, self._is_left_since_step = None, False

    def give_up_rest(self) -> None:
        """Let batches that were handed out, and that no step was made of, be trained on by nobody."""
        if self.is_ahead and not self.is_repeated:
            self.left_epoch = self.begun_epoch

    def forget_left(self) -> None:
        """Forget that this loader was left, if nothing came after that, because the program may mean to continue."""
        if self._is_left_since_step:
            self.left_epoch = None

    def mark_step(self) -> None:
        """Count all batches that were yielded as trained on."""
        self.num_trained = self.num_handed_out
        self._at_step = self.position.state_dict(self.num_yielded)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position at the last :meth:`mark_step`, or None if the loader was never trained on."""
        if self._at_step is None:
            return None
        state = dict(self._at_step)
        if self.is_repeated:
            state["repeat"] = True
        if self.left_epoch is not None and self.left_epoch == state["epoch"]:
            state["left"] = True
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator continue from *state*, if it is one of the same epoch."""
        self.position.load_state_dict(state)
        self.num_trained = self.position.num_done
        self.loaded_epoch = self.position.epoch
        self.is_repeated = bool(state.get("repeat"))
        self.left_epoch = self.loaded_epoch if state.get("left") else None
        self._at_step = state
