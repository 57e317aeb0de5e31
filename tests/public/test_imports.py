"""The names of the package, and the modules that each of them loads. A change here is a change for every user."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import spot_plugins
from spot_plugins import errors

HEAVY = {"torch", "lightning", "pytorch_lightning", "accelerate", "transformers"}

LIGHT_MODULES = [
    "spot_plugins.errors",
    "spot_plugins.config",
    "spot_plugins.events",
    "spot_plugins.clock",
    "spot_plugins.format",
    "spot_plugins.store",
    "spot_plugins.launch",
    "spot_plugins.notices",
    "spot_plugins.schedule",
    "spot_plugins.push",
    "spot_plugins.resume.prefetch",
    "spot_plugins.economics",
    "spot_plugins.market",
    "spot_plugins.upkeep",
    "spot_plugins.monitor",
    "spot_plugins.drill",
]

PUBLIC_NAMES = {
    "spot_plugins": {
        "Preempted",
        "SpotConfig",
        "SpotSession",
        "__version__",
        "export_weights",
        "load_weights",
        "prefetch",
    },
    "spot_plugins.accelerate": {"SpotHook"},
    "spot_plugins.data": {"ElasticSampler", "elastic_loader"},
    "spot_plugins.lightning": {"SpotCheckpoint"},
    "spot_plugins.session": {"SpotSession"},
    "spot_plugins.transformers": {"SpotTrainerCallback"},
}

ERRORS = {
    "SpotError",
    "ConfigError",
    "StoreError",
    "CommitError",
    "CorruptCheckpointError",
    "IncompatibleCheckpointError",
    "NothingToResumeError",
    "SupersededError",
    "UnsafeStateError",
    "Preempted",
}


def modules_with(*modules: str) -> set[str]:
    """Return what is loaded in a new interpreter that imported *modules*."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def heavy_modules_with(*modules: str) -> set[str]:
    """Return which of HEAVY are loaded in a new interpreter that imported *modules*."""
    return HEAVY & modules_with(*modules)


def with_submodules(name: str) -> list[str]:
    """Return *name* and, if it is a package, everything in it."""
    path = getattr(importlib.import_module(name), "__path__", [])
    return [name, *(module.name for module in pkgutil.walk_packages(path, f"{name}."))]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_the_pushers_modules_load_neither_torch_nor_a_host(module: str) -> None:
    """The pusher starts once per rank: what it imports costs each rank that memory and time."""
    assert heavy_modules_with(*with_submodules(module)) == set()


def test_the_package_itself_loads_nothing_heavy() -> None:
    """``import spot_plugins`` is what every process of every kind does first."""
    assert heavy_modules_with("spot_plugins") == set()


def test_the_package_itself_loads_nothing_of_its_own() -> None:
    """Its names are imported when they are first used, so that no process waits for what it does not use."""
    program = "import sys, spot_plugins; print(*(name for name in sys.modules if name.startswith('spot_plugins')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["spot_plugins"]


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES["spot_plugins"] - {"SpotSession", "load_weights"}))
def test_a_light_name_of_the_package_loads_nothing_heavy(name: str) -> None:
    """A program prefetches before torch is imported."""
    program = f"import sys; from spot_plugins import {name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_package_has_these_names_and_no_other() -> None:
    """Each is an attribute, in dir(), and the same object as where it is defined."""
    assert set(dir(spot_plugins)) == PUBLIC_NAMES["spot_plugins"]
    assert set(spot_plugins.__all__) == PUBLIC_NAMES["spot_plugins"]
    assert spot_plugins.prefetch is importlib.import_module("spot_plugins.resume.prefetch").prefetch
    assert spot_plugins.SpotConfig is importlib.import_module("spot_plugins.config").SpotConfig
    assert spot_plugins.SpotSession is importlib.import_module("spot_plugins.session").SpotSession
    assert spot_plugins.Preempted is errors.Preempted
    with pytest.raises(AttributeError, match="'spot_plugins' has no attribute 'SpotSesion'"):
        _ = spot_plugins.SpotSesion


def test_a_loop_loads_no_host_and_nothing_slow() -> None:
    """A user of one host needs none of the others installed, and every restart waits for what is imported."""
    loaded = modules_with("spot_plugins.session", "spot_plugins.bare")
    assert loaded & HEAVY <= {"torch"}
    assert not loaded & {"torch.distributed.checkpoint", "spot_plugins.monitor.tally"}


def test_the_pusher_starts_without_the_metadata_of_packages() -> None:
    """The trainer waits for its start."""
    assert not modules_with("spot_plugins.push.worker") & {"importlib.metadata", "packaging"}


@pytest.mark.parametrize("module", sorted(PUBLIC_NAMES))
def test_the_public_names_are_where_the_readme_says(module: str) -> None:
    """A user's import does not break from one release to the next."""
    assert PUBLIC_NAMES[module] <= set(dir(importlib.import_module(module)))


def test_the_errors_are_these() -> None:
    """A user's ``except`` names one of these; none appears or goes away unnoticed."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {cls.__name__ for cls in classes if issubclass(cls, BaseException)} == ERRORS


def test_the_version_is_a_release_number() -> None:
    """The version that the package states is one that an installer can compare."""
    assert all(part.isdecimal() for part in spot_plugins.__version__.split("."))
