"""Comparison of the installed packages with the versions that this release of spot_plugins declares."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Final

HOSTS: Final = ("torch", "lightning", "accelerate", "transformers")
"""Packages on whose behaviour a training depends most."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed package on which spot_plugins depends, or an extra of it."""

    name: str
    version: str
    wanted: str
    """The versions that spot_plugins declares, such as ``<2.7,>=2.6``. Empty: any."""
    is_wanted: bool

    @property
    def problem(self) -> str:
        """A sentence about a version that is not wanted, without a full stop."""
        return f"{self.name} {self.version} is none of the versions that this release works with ({self.wanted})"

    @property
    def remedy(self) -> str:
        """The command that installs a wanted version."""
        return f"pip install '{self.name}{self.wanted}'"


def installed() -> list[Installed]:
    """
    Return the packages that spot_plugins declares and that are installed, by name.

    A package that no extra for users names, such as one for the tests, is not returned. Without the package
    ``packaging``, which all hosts need, nothing can be compared, and the list is empty.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    wanted = {}
    for text in metadata.requires("spot_plugins") or ():
        try:
            requirement = Requirement(text)
        except SystemError:  # Python 3.11, if another thread compiles at that moment (cpython issue 106905)
            continue
        is_for_users = requirement.marker is None or requirement.marker.evaluate({"extra": "all"})
        if is_for_users and (version := _version(requirement.name)) is not None:
            fits = requirement.specifier.contains(version, prereleases=True)
            wanted[requirement.name] = Installed(requirement.name, version, str(requirement.specifier), fits)
    return [wanted[name] for name in sorted(wanted)]


def unwanted() -> list[Installed]:
    """Return those of the installed packages whose version is outside of what spot_plugins declares."""
    return [each for each in installed() if not each.is_wanted]


def host_versions() -> dict[str, str]:
    """Return the version of each of :data:`HOSTS` that is installed."""
    return {name: version for name in HOSTS if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
