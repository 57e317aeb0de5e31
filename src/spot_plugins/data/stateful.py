"""Positions in a loader that restores itself, such as a torchdata ``StatefulDataLoader``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .internals import as_unfinished, check_stateful, drop_early_iterator, knows_its_end
from .replayed import MISSING, Replayed
from .rng import borrowed_streams
from .unwrap import streams
from .where import Where


class Stateful(Replayed):
    """Position that the loader itself saves and restores, also if Accelerate has wrapped the loader."""

    kind = "stateful"

    def __init__(self, loader: Any, world_size: int) -> None:
        super().__init__(loader, world_size)
        check_stateful(self._plain)
        self._num_workers = getattr(self._plain, "num_workers", 0)
        self._has_begun = False
        # The state that brings a new loader to where the present iterator began. It may be a state from the end of
        # the epoch before, or None.
        self._start: dict[str, Any] = {"loader": None, "of_epoch_before": True}
        drop_early_iterator(self._plain)

    def begin(self, epoch: int, number: int) -> None:
        """Give the loader its state, so that its next iterator makes this pass of *epoch*."""
        super().begin(epoch, number)
        self._has_begun = True

    def after(self, batches: int) -> dict[str, Any]:
        """Ask the loader for its state. Before its first batch use the start, because asking starts an iterator."""
        if self._loaded is not None:
            return dict(self._loaded)
        now = {"loader": self._loader.state_dict(), "of_epoch_before": False} if batches > 0 else self._start
        return {**super().after(batches), **now, "num_workers": self._num_workers}

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Keep the position. Refuse one that the loader would refuse later, or follow to another place."""
        for name, here, there in (
            ("world_size", self._world_size, where.world_size),
            ("num_workers", self._num_workers, at["num_workers"]),
            (
                f"batch_size over {self._world_size} ranks",
                self._samples_per_step,
                at.get("batch_size", self._samples_per_step),
            ),
        ):
            if here != there:
                other = "" if streams(self._loader) else ", or a loader from spot_plugins.data.elastic_loader"
                raise ConfigError(
                    f"{name}={here} differs from {name}={there} in the checkpoint, and a stateful loader can "
                    f"only continue with the same number. Use {name}={there}{other and other + ', which takes any'}, "
                    f"or start a new run"
                )
        super().load(at, where=where)

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        super()._begin_again(loaded)
        self._start = {name: loaded[name] for name in self._start}
        if loaded["of_epoch_before"]:
            self._pass_over(loaded["loader"])
        else:
            # Accelerate marks the state as finished already at the last batch. torchdata would then begin a new
            # epoch at once, but this epoch has to end first.
            self._plain.load_state_dict(as_unfinished(loaded["loader"]))

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        super()._begin_anew(loaded)
        if loaded is not None:
            self._pass_over(loaded["loader"])
            self._start = {"loader": loaded["loader"], "of_epoch_before": True}
        elif self._has_begun:
            self._start = {"loader": self._loader.state_dict(), "of_epoch_before": True}

    def _pass_over(self, state: Mapping[str, Any] | None) -> None:
        """
        Restore the loader to the end of the epoch in which *state* was saved.

        A loader that was saved at its last batch has not noticed yet that the epoch is over. Its next iterator would
        yield nothing. torchdata's loader makes a fresh iterator after that one.

        Any other loader is tried: if its iterator yields a batch, the loader was at the beginning of an epoch, and
        its state is restored again.
        """
        if state is None:
            return
        self._plain.load_state_dict(dict(state))
        with borrowed_streams():
            iterator = iter(self._plain)
            if not knows_its_end(state) and next(iterator, MISSING) is not MISSING:
                self._plain.load_state_dict(dict(state))
