"""
Private names of torch and torchdata that this package uses, and the check of every private name of a host.

Checked against torch 2.13 and torchdata 0.11. No other module of this package touches a private name of theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch.utils.data

from ..errors import ConfigError

_FINISHED: Final = "_iterator_finished"
"""torchdata's key for "the iterator has raised StopIteration" in the state of a loader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A library of which we use private attributes."""

    package: str
    """Name on PyPI."""

    checked: str
    """Version that our tests ran with, as a version specifier of pip: ``2.6.*``."""

    def require(self, name: str, holder: object, paths: Iterable[str]) -> None:
        """
        Check that *holder* has every attribute of *paths*.

        It looks at the attributes and never compares versions, so that a newer version that kept them works.

        Args:
            name: Name of *holder* in the error.
            holder: Object of the library.
            paths: Dotted names below *holder*, for example ``fit_loop._data_fetcher``.

        Raises:
            ConfigError: An attribute is missing.
        """
        for path in paths:
            owner = holder
            for attribute in path.split("."):
                if not hasattr(owner, attribute):
                    raise ConfigError(self.missing(f"{name}.{path}"))
                owner = getattr(owner, attribute)

    def missing(self, attribute: str) -> str:
        """Return the words of the error that *attribute* is missing in the installed version."""
        return (
            f"{self.package}={self._installed()} has no {attribute}, which spot_plugins needs to save and restore the "
            f"training exactly. Install a version that was checked: pip install '{self.package}=={self.checked}'"
        )

    def _installed(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "unknown"


TORCH: Final = Library(package="torch", checked="2.13.*")
TORCHDATA: Final = Library(package="torchdata", checked="0.11.*")


def check_torch() -> None:
    """
    Check the private names of torch that this package uses.

    Raises:
        ConfigError: The installed version lacks one of them.
    """
    names = ("_utils._set_python_exit_flag", "_utils.signal_handling._error_if_any_worker_fails")
    TORCH.require("torch.utils.data", torch.utils.data, names)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1)))
    TORCH.require("DataLoader", loader, ("_iterator",))


def accelerate_deals_out() -> bool:
    """
    Return True if an ``Accelerator`` exists in this process, so that Accelerate deals out the samples of every loader.

    Accelerate is not imported for the answer.
    """
    module = sys.modules.get("accelerate.state")
    return module is not None and bool(module.is_initialized())


def has_persistent_iterator(loader: torch.utils.data.DataLoader[Any]) -> bool:
    """Return True if *loader* has made the iterator that it keeps for its persistent workers."""
    return loader._iterator is not None


def replace_index_sampler(loader: torch.utils.data.DataLoader[Any], name: str, sampler: Any) -> None:
    """Give *loader* another ``sampler`` or ``batch_sampler``, as *name* says. torch refuses the plain assignment."""
    loader.__dict__[name] = sampler


def forget_workers() -> None:
    """
    Let no loader of this process wait for its workers any more, and let torch raise nothing for those that are killed.

    torch itself does the first when the interpreter ends. From then on no iterator touches the queues and locks that it
    shares with its workers. A killed worker may have died while it held a lock, and a wait for that never ends.

    The second is for torch's handler of SIGCHLD, which would raise "DataLoader worker is killed by signal" in the main
    thread, in the middle of a clean exit. To take the handler away is not enough: Lightning puts it back.
    """
    utils = torch.utils.data._utils
    utils._set_python_exit_flag()
    vars(utils.signal_handling)["_error_if_any_worker_fails"] = lambda: None


def has_shuffle_buffer(dataset: Any) -> bool:
    """
    Return True if *dataset* is a Hugging Face stream with a shuffle buffer, however deep below other steps.

    The state of such a stream holds the position of its source and nothing of the buffer. Hugging Face fills the
    buffer anew, so samples are lost. Checked against datasets 5.2. The ``datasets`` package is not imported.
    """
    return any(type(step).__name__ == "BufferShuffledExamplesIterable" for step in _steps_of(dataset))


def is_shuffled_without_seed(dataset: Any) -> bool:
    """
    Return True if *dataset* is a Hugging Face stream with a step whose generator was made without a seed.

    numpy seeds such a generator with 128 bits of the operating system, which are more than a program writes.
    """
    sequences = (getattr(getattr(step, "generator", None), "bit_generator", None) for step in _steps_of(dataset))
    entropies = (getattr(getattr(each, "seed_seq", None), "entropy", None) for each in sequences)
    return any(isinstance(each, int) and each >= 2**64 for each in entropies)


def _steps_of(dataset: Any) -> Iterator[Any]:
    """Yield the steps of *dataset*, a Hugging Face stream, and of what is below it. None of any other data set."""
    found = [getattr(dataset, "_ex_iterable", None), getattr(dataset, "dataset", None)]
    seen: set[int] = set()
    while found:
        part = found.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        names = ("_ex_iterable", "ex_iterable", "dataset")
        found += [getattr(part, name, None) for name in names]
        several = getattr(part, "ex_iterables", None)
        found += several if isinstance(several, list) else []


def is_hugging_face(dataset: Any) -> bool:
    """Return True if *dataset* is a stream of Hugging Face's ``datasets``."""
    return hasattr(dataset, "_ex_iterable")


def dataset_state_of(state: Mapping[str, Any]) -> Any:
    """Return the state of the data set within *state* of torchdata's loader without workers, or None."""
    fetcher = state.get("fetcher_state") or {}
    return state.get("dataset_state") or fetcher.get("dataset_iter_state")


def end_persistent_workers(loader: Any) -> None:
    """Let *loader* start new workers for its next iterator, although they are persistent."""
    if getattr(loader, "persistent_workers", False):
        loader._iterator = None


def check_stateful(loader: Any) -> None:
    """
    Check the private names of torchdata, if *loader* is one of torchdata's.

    Raises:
        ConfigError: The installed version lacks one of them.
    """
    packages = {base.__module__.partition(".")[0] for base in type(loader).__mro__}
    if TORCHDATA.package in packages:
        TORCHDATA.require(type(loader).__name__, loader, ("_initial_iter_for_state_dict",))


def drop_early_iterator(loader: Any) -> None:
    """
    Make a stateful loader forget the iterator that it made because its state was asked for.

    Accelerate asks a new loader for its state. torchdata's loader then starts an iterator, with workers and in an
    order that no epoch was set for. An empty state makes it forget that iterator.
    """
    if getattr(loader, "_initial_iter_for_state_dict", False):
        loader.load_state_dict({})


def knows_its_end(state: Mapping[str, Any]) -> bool:
    """Return True if *state* of a stateful loader says whether its iterator has ended, as torchdata's does."""
    return _FINISHED in state


def as_unfinished(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of *state* whose iterator has not ended yet."""
    return {**state, _FINISHED: False} if knows_its_end(state) else dict(state)
