"""
Private names of torch and torchdata that this package uses, and the check of every private name of a host.

Checked against torch 2.13 and torchdata 0.11. No other module of this package touches a private name of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    TORCH.require("torch.utils.data", torch.utils.data, ("_utils._set_python_exit_flag",))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1)))
    TORCH.require("DataLoader", loader, ("_iterator",))


def has_persistent_iterator(loader: torch.utils.data.DataLoader[Any]) -> bool:
    """Return True if *loader* has made the iterator that it keeps for its persistent workers."""
    return loader._iterator is not None


def never_wait_for_workers() -> None:
    """
    Let no loader of this process wait for its workers any more.

    torch itself does this when the interpreter ends. From then on no iterator touches the queues and locks that it
    shares with its workers. A killed worker may have died while it held a lock, and a wait for that never ends.
    """
    torch.utils.data._utils._set_python_exit_flag()


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
