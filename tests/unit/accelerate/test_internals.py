"""An Accelerate that lacks a private attribute is refused by name, before anything is prepared."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from spot_plugins.accelerate import SpotHook, internals
from spot_plugins.errors import ConfigError


@pytest.fixture
def accelerator():
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True)


def test_the_installed_version_has_everything(accelerator):
    """The check passes where our other tests pass."""
    internals.check(accelerator)


@pytest.mark.parametrize("name", internals.ACCELERATOR_ATTRIBUTES)
def test_a_missing_attribute_is_named(name, accelerator, tmp_path):
    """With the installed version, the checked one and the command that installs it. The run has not begun."""
    delattr(accelerator, name)

    with pytest.raises(ConfigError) as refused:
        SpotHook(accelerator, str(tmp_path / "run"), every_steps=1)

    assert f"has no Accelerator.{name}," in str(refused.value)
    assert "which spot_plugins needs to save and restore the training exactly" in str(refused.value)
    assert "accelerate=1." in str(refused.value)
    assert "pip install 'accelerate==1.15.*'" in str(refused.value)
    assert not (tmp_path / "run").exists()
