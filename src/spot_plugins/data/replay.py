"""Positions in loaders that are not elastic: restored by the loader itself, or by counting batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.utils.data import IterableDataset

from ..errors import ConfigError
from .anatomy import plain_loader, set_epoch
from .generators import LoaderGenerators
from .rng import borrowed_streams, load_streams_state, streams_state

_FINISHED: Final = "_iterator_finished"  # torchdata's word for: the iterator has raised StopIteration
_MISSING: Final = object()


class _Replayed:
    """
    A position counted in batches, in an epoch that can be begun once more with the same randomness.

    Orders and the seeds of workers are those of :class:`LoaderGenerators`. A sampler of the user's own may
    draw from the process' streams, so their state at the beginning of the epoch is part of the position. Not
    repeatable are the streams of persistent workers from the second epoch on: they are where the first left
    them.
    """

    kind: str

    def __init__(self, loader: Any, world_size: int) -> None:
        self._loader = loader
        self._plain = plain_loader(loader)
        self._world_size = world_size
        self._generators = LoaderGenerators(loader)
        self._epoch = 0
        self._before = 0  # batches of this epoch that earlier processes trained on
        self._at_begin: dict[str, Any] = {}  # streams when this epoch was begun for the first time
        self._loaded: Mapping[str, Any] | None = None  # a position that no epoch has been begun with yet
        self._interrupted: dict[str, Any] | None = None  # streams to go back to after the fast-forward

    def begin(self, epoch: int) -> None:
        """Begin the epoch of a loaded position once more, or else a new one."""
        loaded, self._loaded = self._loaded, None
        set_epoch(self._loader, epoch)
        if loaded is not None and epoch == self._epoch:
            self._begin_again(loaded)
        else:
            self._begin_anew(loaded)
        self._epoch = epoch
        self._generators.begin(epoch)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Go back to the streams that :meth:`begin` found."""
        if self._interrupted is not None:
            load_streams_state(self._interrupted)
            self._interrupted = None

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position behind *batches* batches; a loaded one that was not begun, as it was."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {
            "batches": self._before + batches,
            "seeds": list(self._generators.seeds),
            "at_begin": self._at_begin,
        }

    def done_after(self, batches: int) -> bool:
        """Compare with the length of the loader, where it has one."""
        length = _length(self._loader)
        return length is not None and self.behind() + batches >= length

    def behind(self) -> int:
        """Return the batches of the position, whether its epoch has begun again or not."""
        return self._before if self._loaded is None else int(self._loaded["batches"])

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Keep the position until an epoch begins: what to do with it depends on which one that is."""
        self._generators.seeds = list(at["seeds"])
        self._loaded = at
        self._epoch = epoch

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        self._before = loaded["batches"]
        self._at_begin = loaded["at_begin"]
        if self._before > 0:
            self._interrupted = streams_state()
            load_streams_state(self._at_begin)

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        self._before = 0
        self._at_begin = streams_state()


class Counted(_Replayed):
    """Fetch the batches that were trained on once more, and throw them away."""

    kind = "counted"

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Count in batches of this number of ranks. A part of one is trained on twice rather than never."""
        batches = at["batches"] * world_size // self._world_size
        super().load({**at, "batches": batches}, epoch=epoch, world_size=world_size)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Throw away the first batches of *iterator*, then go back to the streams that :meth:`begin` found."""
        if self._interrupted is not None:
            warnings.warn(
                f"fetching {self._before} batches again to find the position in the training data. A loader "
                f"from spot_plugins.data.elastic_loader goes there at once",
                stacklevel=3,
            )
            for number in range(self._before):
                if next(iterator, _MISSING) is _MISSING:
                    raise ConfigError(
                        f"the training loader ended after {number} batches, but {self._before} of this epoch "
                        f"were trained on. Use the same data and batch size as before, or start a new run"
                    )
        super().fast_forward(iterator)


class Stateful(_Replayed):
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
            if _FINISHED not in state and next(iterator, _MISSING) is not _MISSING:
                self._plain.load_state_dict(dict(state))


def _length(loader: Any) -> int | None:
    """Return the number of batches in an epoch, or None: that of an iterable data set is only an estimate."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
