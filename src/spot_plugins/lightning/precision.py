"""The state of the precision plugin. Most plugins have only the state of their gradient scaler."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision, Precision
from torch.amp import GradScaler

from ..state.part import PlainPart
from ..state.scaler import ScalerPart, numbers_of


def precision_part(plugin: Precision) -> PlainPart:
    """Return the part for *plugin*: that of its scaler, if *plugin* has no other state."""
    is_usual = type(plugin).state_dict in (MixedPrecision.state_dict, FSDPPrecision.state_dict)
    scaler = getattr(plugin, "scaler", None)
    return ScalerPart(scaler) if is_usual and isinstance(scaler, GradScaler) else PlainPart(plugin)


def own_state(plugin: Precision, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state *saved* by :func:`precision_part` as the ``state_dict()`` of *plugin* would."""
    return numbers_of(saved) if isinstance(precision_part(plugin), ScalerPart) else saved
