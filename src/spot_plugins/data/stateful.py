"""A loader that restores its own position, such as a torchdata ``StatefulDataLoader``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import ConfigError
from .replayed import MISSING, Replayed
from .rng import borrowed_streams

_FINISHED: Final = "_iterator_finished"  # torchdata's word for: the iterator has raised StopIteration


class Stateful(Replayed):
    """Let the loader restore itself: torchdata's ``StatefulDataLoader``, also inside Accelerate's loader."""

    kind = "stateful"

    def __init__(self, loader: Any, world_size: int) -> None:
        super().__init__(loader, world_size)
        self._num_workers = getattr(self._plain, "num_workers", 0)
        self._has_begun = False
        # How to bring a new loader to where the present iterator began: with this state of its own, which may
        # be of the end of the epoch before, or with none.
        self._start: dict[str, Any] = {"loader": None, "of_epoch_before": True}
        # Accelerate asks a new loader for its state, which makes torchdata's start an iterator, with workers
        # and in an order that no epoch was set for. An empty state makes it forget that one.
        if getattr(self._plain, "_initial_iter_for_state_dict", False):
            self._plain.load_state_dict({})

    def begin(self, epoch: int) -> None:
        """Give the loader its state, such that its next iterator is one of *epoch*."""
        super().begin(epoch)
        self._has_begun = True

    def after(self, batches: int) -> dict[str, Any]:
        """Ask the loader; but before its first batch that would make it start an iterator."""
        if self._loaded is not None:
            return dict(self._loaded)
        now = {"loader": self._loader.state_dict(), "of_epoch_before": False} if batches > 0 else self._start
        return {**super().after(batches), **now, "num_workers": self._num_workers}

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Refuse what the loader cannot restore, and would refuse later with less to say."""
        for name, here, there in (
            ("world_size", self._world_size, world_size),
            ("num_workers", self._num_workers, at["num_workers"]),
        ):
            if here != there:
                raise ConfigError(
                    f"{name}={here} differs from {name}={there} in the checkpoint, and a stateful loader can "
                    f"only go on with the same. Restore it; a loader from spot_plugins.data.elastic_loader "
                    f"takes any"
                )
        super().load(at, epoch=epoch, world_size=world_size)

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        super()._begin_again(loaded)
        self._start = {name: loaded[name] for name in self._start}
        if loaded["of_epoch_before"]:
            self._pass_over(loaded["loader"])
        else:
            state = dict(loaded["loader"])
            if _FINISHED in state:
                # Accelerate says so already at the last batch, and torchdata then begins a new epoch at once.
                # This one is to end first.
                state[_FINISHED] = False
            self._plain.load_state_dict(state)

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        super()._begin_anew(loaded)
        if loaded is not None:
            self._pass_over(loaded["loader"])
            self._start = {"loader": loaded["loader"], "of_epoch_before": True}
        elif self._has_begun:
            self._start = {"loader": self._loader.state_dict(), "of_epoch_before": True}

    def _pass_over(self, state: Mapping[str, Any] | None) -> None:
        """
        Restore the loader to the end of the epoch that *state* is of.

        Saved at the last batch, a loader has not noticed yet that the epoch is over, and its next iterator
        would yield nothing. torchdata's makes a fresh one each time after that. With other loaders it shows
        in whether there is a batch now; if there is, the loader was at a beginning already.
        """
        if state is None:
            return
        self._plain.load_state_dict(dict(state))
        with borrowed_streams():
            iterator = iter(self._plain)
            if _FINISHED not in state and next(iterator, MISSING) is not MISSING:
                self._plain.load_state_dict(dict(state))
