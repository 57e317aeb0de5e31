"""A Lightning that lacks a private attribute is refused by name, before anything is trained."""

from __future__ import annotations

import importlib

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.utilities import CombinedLoader

from spot_plugins.errors import ConfigError
from spot_plugins.lightning import SpotCheckpoint, internals


@pytest.fixture
def trainer(tmp_path):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)


def remove(monkeypatch, owner, name):
    """Take attribute *name* away from *owner*, be it of the instance or of a class."""
    if name in vars(owner):
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.delattr(next(base for base in type(owner).__mro__ if name in vars(base)), name)


def test_the_installed_version_has_everything(trainer):
    """The check passes where our other tests pass."""
    internals.check(trainer)


@pytest.mark.parametrize("path", internals.TRAINER_ATTRIBUTES)
def test_a_missing_attribute_of_the_trainer_is_named(path, trainer, monkeypatch):
    """With the installed version, the checked one and the command that installs it."""
    owner = trainer
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    remove(monkeypatch, owner, name)

    with pytest.raises(ConfigError) as refused:
        internals.check(trainer)

    assert f"has no Trainer.{path}," in str(refused.value)
    assert "lightning=2.6." in str(refused.value)
    assert "pip install 'lightning==2.6.*'" in str(refused.value)


class Uncounted(CombinedLoader):
    """A combined loader whose iterator no longer counts."""

    def __iter__(self):
        super().__iter__()
        del self._iterator._idx
        return self


class Unnumbered(result._ResultMetric):
    """A metric that no longer counts its updates."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self._update_count


class Renamed:
    """A _Sync with other fields."""


@pytest.mark.parametrize(
    ("name", "replacement", "missing"),
    [
        ("CombinedLoader", Uncounted, r"lightning=.* has no CombinedLoader\._iterator\._idx"),
        ("_Sync", Renamed, r"lightning=.* has no _Sync\._should"),
        ("_ResultMetric", Unnumbered, r"torchmetrics=.* has no Metric\._update_count"),
    ],
)
def test_a_missing_attribute_of_another_class_is_named(name, replacement, missing, trainer, monkeypatch):
    """Of objects that there are none of yet when the check runs."""
    monkeypatch.setattr(internals, name, replacement)

    with pytest.raises(ConfigError, match=missing):
        internals.check(trainer)


def test_a_private_class_that_is_gone_is_named(monkeypatch):
    """Importing the host then says so as a ConfigError too."""
    with monkeypatch.context() as patched:
        patched.delattr(result, "_Metadata")
        with pytest.raises(ConfigError, match="private class: cannot import name '_Metadata'"):
            importlib.reload(internals)
    importlib.reload(internals)


def test_fit_is_refused_before_the_store_is_touched(trainer, tmp_path, monkeypatch):
    """The check comes first in fit(), so the run has not begun."""
    del trainer.fit_loop._restarting
    spot = SpotCheckpoint(str(tmp_path / "run"), every_steps=1)

    with pytest.raises(ConfigError, match=r"Trainer\.fit_loop\._restarting"):
        spot.setup(trainer, LightningModule(), "fit")

    assert not (tmp_path / "run").exists()
