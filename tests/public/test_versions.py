"""The bounds that the package declares are those that are tested."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("lightning", "accelerate", "fast", "gcs", "azure", "cli")
NOT_LOWEST = {"torch"}
"""Each build of it takes gigabytes, so that the leg has the version of constraints.txt. pyproject.toml says so."""

tomllib = pytest.importorskip("tomllib")


def pinned(file):
    """Return the versions in a file of pip, by name."""
    lines = [line.partition(";")[0].strip() for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if "==" in line)


def lowest_declared():
    """Return the lower bounds of pyproject.toml, by name."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in project["optional-dependencies"][extra])]
    bounds = {}
    for requirement in map(Requirement, texts):
        for each in requirement.specifier:
            if each.operator == ">=":
                bounds[requirement.name] = each.version
    return {name: bound for name, bound in bounds.items() if name not in NOT_LOWEST}


def test_the_leg_of_lowest_versions_has_those_that_are_declared():
    """After a change of a bound, `make legs LEGS=resolve` makes tests/lowest.txt anew."""
    from packaging.version import Version

    found, declared = pinned(ROOT / "tests/lowest.txt"), lowest_declared()
    assert len(declared) >= len(EXTRAS)
    assert {name: Version(found[name]) for name in declared} == {name: Version(low) for name, low in declared.items()}


def test_the_newest_tested_versions_are_within_the_bounds():
    from packaging.version import Version

    newest = pinned(ROOT / "constraints.txt")
    assert [name for name, low in lowest_declared().items() if Version(newest[name]) < Version(low)] == []
