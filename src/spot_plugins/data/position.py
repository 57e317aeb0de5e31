"""The position of training in one loader, saved and restored by the same code for all hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from ..config import FastForward, checked
from ..errors import ConfigError
from .counted import Counted
from .elastic import Elastic
from .internals import has_shuffle_buffer, is_shuffled_without_seed
from .loader import NO_ORDER
from .sampler import ElasticSampler
from .sources import numbers_of, sources_of
from .stateful import Stateful
from .unwrap import plain_loader, samplers, streams
from .where import Where

NO_SEED: Final = (
    "the training data is a stream of Hugging Face that is shuffled without a seed, so that each process has another "
    "order. Give a seed to shuffle(), and to interleave_datasets() with probabilities"
)


class LoaderPosition:
    """
    The position of training in one loader. It can be saved at any batch and restored in another process.

    The loader decides the :attr:`kind` of its position:

    - ``elastic``: the loader has an :class:`~spot_plugins.data.ElasticSampler`. The position is exact on any number
      of ranks.
    - ``stateful``: the loader has ``state_dict`` and ``load_state_dict``, as torchdata's ``StatefulDataLoader`` has,
      also inside Accelerate's. Its state is restored, on the same number of ranks and workers.
    - ``counted``: any other loader, one over a Hugging Face stream with a shuffle buffer, whose state lacks the
      content of the buffer, and one that rank 0 reads for all ranks. The batches that were trained on are passed over
      at the sampler if that is known to yield the same batches, or if *fast_forward* demands it. Otherwise they are
      fetched again and thrown away, after a warning that names their number.

    A host makes the position once, after it has wrapped the loader. For every epoch it then calls::

        position.begin_epoch(epoch)
        iterator = iter(loader)
        position.fast_forward(iterator)
        ...                                 # train on n batches of this iterator
        state = position.state_dict(n)

    In a later process it calls :meth:`load_state_dict` before the first :meth:`begin_epoch`. If :attr:`epoch_done`
    is true after that, an iterator of :attr:`epoch` yields nothing, and the host may begin the next epoch instead.
    Batches are counted from where the iterator of this process began, without those of earlier processes.

    Making an iterator draws nothing from the random streams of the process. So a host may restore the streams before
    or after. It must not do so between :meth:`begin_epoch` and :meth:`fast_forward`, because the streams may then be
    those of the beginning of the epoch.
    """

    def __init__(self, loader: Any, world_size: int, *, fast_forward: FastForward = "auto") -> None:
        """
        Inspect *loader* and give it random generators of its own.

        Args:
            loader: One loader, as the host iterates it.
            world_size: Ranks that read their share of it.
            fast_forward: The way to the position in a ``counted`` loader, see :class:`~spot_plugins.config.SpotConfig`.

        Raises:
            ConfigError: The loader holds an elastic sampler in a way that leaves its position unknown, or yields a
                stream in another order in every process, or *fast_forward* is none of its words.
        """
        self._world_size = world_size
        self._epoch = 0
        self._number = 0  # passes over the loader that ended earlier in this epoch
        self._epoch_done = False
        self._ended = False
        self._loaded = False
        self._kind = _kind_of(loader, world_size, checked("fast_forward", fast_forward))
        self.sources = sources_of(loader)
        """The data set and the samplers of the loader, and those in them."""
        self._is_fetched_again = self.kind == "counted" or streams(loader)
        self._numbers: dict[int, dict[str, object]] = {}
        self._look_at_sources()

    @property
    def kind(self) -> str:
        """``elastic``, ``stateful`` or ``counted``."""
        return self._kind.kind

    @property
    def epoch(self) -> int:
        """The epoch that was begun or loaded last."""
        return self._epoch

    @property
    def epoch_done(self) -> bool:
        """True if the loaded position is after the last batch of its epoch. False if the length is unknown."""
        return self._epoch_done

    @property
    def num_passes(self) -> int:
        """Number of passes over the loader that were completed and followed by another one in this epoch."""
        return self._number

    @property
    def ended(self) -> bool:
        """True if the loaded iterator had ended already. The host must not make it again in that epoch."""
        return self._ended

    @property
    def num_done(self) -> int:
        """
        Number of batches of the epoch before a loaded position, in batches of this job.

        With another number of ranks these are not the batches that were trained on. The number of batches that are
        left is right.
        """
        return self._kind.num_done()

    @property
    def batches_behind(self) -> int:
        """The old name of :attr:`num_done`."""
        return self.num_done

    def begin_epoch(self, epoch: int) -> None:
        """
        Prepare for one iterator of *epoch*. Call it once, before that iterator is made.

        In the epoch of a loaded position the iterator will continue there. In any other epoch it begins at the
        beginning.
        """
        continues = self._loaded and epoch == self._epoch
        self._loaded = False
        if continues and self._ended:
            return
        self._ended = False
        self._number = self._number if continues else 0
        self._kind.begin(epoch, self._number)
        self._look_at_sources()
        self._epoch_done = self._epoch_done and epoch == self._epoch
        self._epoch = epoch

    def begin_pass(self) -> None:
        """
        Prepare for another iterator in the same epoch, at the beginning of the loader.

        A host that repeats a short loader beside a long one calls it instead of :meth:`begin_epoch` for every
        iterator but the first.
        """
        self._number += 1
        self._epoch_done = self._ended = False
        self._kind.begin(self._epoch, self._number)
        self._look_at_sources()

    def note_fetch(self, batches_done: int) -> None:
        """
        Note that the next batch is fetched, after *batches_done* batches of the present iterator.

        A host may leave it out. With it the position is exact also if the program draws random numbers between the
        making of the iterator and the first fetch, and the loader draws from the same streams. A stream whose state
        does not hold its position is then named.
        """
        self._kind.note_fetch(batches_done)

    def fetch_ahead(self, iterator: Iterator[Any], batches_done: int) -> Any:
        """
        Return the batch after *batches_done* of *iterator*, which fetches one batch ahead of those that it yields.

        A data set that draws from the streams of this process then draws the same numbers after a resume.

        Returns:
            The batch, or :data:`~spot_plugins.data.replayed.MISSING` at the end.
        """
        return self._kind.fetch_ahead(iterator, batches_done)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """
        Bring a new iterator to the position, if its loader could not do that by itself.

        Leaves the random streams of this process as they were at :meth:`begin_epoch`.

        Raises:
            ConfigError: The loader has fewer batches than were trained on.
        """
        self._kind.fast_forward(iterator)

    def state_dict(self, batches_done: int, *, ended: bool = False) -> dict[str, Any]:
        """
        Return the position after *batches_done* batches of the present iterator. 0 if there is none.

        Set *ended* if the host has met the end of that iterator.

        It holds tensors, numbers, strings, None, and dicts and lists of them. A stateful loader may add objects of
        its own. The state of a stateful loader is that of now, so call this right after the batch.
        """
        state = {
            "kind": self.kind,
            "world_size": self._world_size,
            "epoch": self._epoch,
            "epoch_done": self._kind.ends_after(batches_done),
            "at": self._kind.after(batches_done),
        }
        # Left out where they say nothing, so that the state of an ordinary loader is stored as it always was.
        if self._number:
            state["pass"] = self._number
        if ended or self._ended:
            state["ended"] = True
        return state

    def numbers(self, batches_done: int) -> tuple[int, int]:
        """
        Return the epoch, and the progress in it after *batches_done* batches of the present iterator.

        It is equal at the same position in every process of the same number of ranks. Unlike :meth:`state_dict` it
        takes less than a microsecond.
        """
        return self._epoch, self._kind.progress(batches_done)

    def numbers_of_sources(self) -> dict[int, dict[str, object]]:
        """
        Return what each of :attr:`sources` counts and orders by, by its ``id()``.

        If a resume fetches all batches of a pass again, these are the values at the begin of this pass, from which the
        same values follow again. Otherwise they are the values of now.
        """
        if not self._is_fetched_again:
            self._look_at_sources()
        return self._numbers

    def _look_at_sources(self) -> None:
        self._numbers = {id(source): numbers_of(source) for source in self.sources}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Restore a position that :meth:`state_dict` returned. Call it before :meth:`begin_epoch`.

        Raises:
            ConfigError: The position was saved for another kind of loader, other data, or, for a stateful
                loader or a stream, another number of ranks or workers.
        """
        known = {"counted", "stateful"} if self.kind == "counted" else {self.kind}
        if state_dict["kind"] not in known:
            raise ConfigError(
                f"the training loader's kind={self.kind} differs from kind={state_dict['kind']} in the "
                f"checkpoint, so its position cannot be restored. Use the same loader as before, or start a "
                f"new run"
            )
        where = Where(
            epoch=state_dict["epoch"],
            number=state_dict.get("pass", 0),
            world_size=state_dict["world_size"],
            epoch_done=state_dict["epoch_done"],
        )
        self._kind.load(state_dict["at"], where=where)
        self._epoch, self._number, self._epoch_done = where.epoch, where.number, where.epoch_done
        self._ended = state_dict.get("ended", False)
        self._loaded = True


class PositionKind(Protocol):
    """The position of one kind of loader. :class:`LoaderPosition` calls the methods in its own order."""

    kind: str

    def begin(self, epoch: int, number: int) -> None:
        """Prepare for the iterator that makes pass *number* over the loader in *epoch*, counted from 0."""
        ...

    def note_fetch(self, batches: int) -> None:
        """Note that the next batch is fetched, after *batches* batches of the present iterator."""
        ...

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Return the batch after *batches* of *iterator*, which has fetched it before, or MISSING."""
        ...

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Bring the new *iterator* to the position."""
        ...

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position after *batches* batches of the present iterator."""
        ...

    def progress(self, batches: int) -> int:
        """Return a number that grows with every batch of the epoch, whichever process trained on it."""
        ...

    def ends_after(self, batches: int) -> bool:
        """Return True if no batch of the epoch is left after that position."""
        ...

    def num_done(self) -> int:
        """Return the number of batches of this job before the loaded position."""
        ...

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Restore a position that :meth:`after` returned in the pass *where*."""
        ...


def _kind_of(loader: Any, world_size: int, fast_forward: FastForward) -> PositionKind:
    elastic = next((found for found in samplers(loader) if isinstance(found, ElasticSampler)), None)
    if elastic is not None:
        return Elastic(loader, elastic, world_size)
    plain = plain_loader(loader)
    if streams(loader):
        _check_order(plain)
    can_restore = hasattr(plain, "state_dict") and hasattr(plain, "load_state_dict")
    # What Accelerate saves of a loader that rank 0 reads for all ranks is some batches too late.
    deals_out = world_size > 1 and hasattr(loader, "slice_fn")
    if can_restore and not deals_out and not has_shuffle_buffer(getattr(plain, "dataset", None)):
        return Stateful(loader, world_size)
    return Counted(loader, world_size, fast_forward)


def _check_order(loader: Any) -> None:
    """Raise :exc:`ConfigError` if *loader* is known to yield a stream in another order in every process."""
    if getattr(loader, "num_workers", 0) > 0 and not getattr(loader, "in_order", True):
        raise ConfigError(NO_ORDER)
    if is_shuffled_without_seed(loader.dataset):
        raise ConfigError(NO_SEED)
