"""The state of a trainer as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spot_plugins.errors import ConfigError
from spot_plugins.transformers.part import _for_json


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.float32(0.5), torch.tensor([0.5])])
def test_a_number_of_a_library_is_one_of_python(value):
    assert json.loads(json.dumps({"best": value}, default=_for_json)) == {"best": 0.5}


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros(3), {1, 2}, object()], ids=lambda each: type(each).__name__)
def test_state_that_json_does_not_hold_is_named(value):
    """An array of several numbers is none that JSON holds, either."""
    with pytest.raises(ConfigError, match=f"has a {type(value).__name__}, which JSON does not hold. Let its state be"):
        json.dumps({"best": value}, default=_for_json)
