"""
Make spot and preemptible GPUs harmless for PyTorch training.

Start with :class:`spot_plugins.lightning.SpotCheckpoint` (a Lightning callback) or
:class:`spot_plugins.accelerate.SpotHook` (an Accelerate hook). Any other loop uses :class:`SpotSession`.

A name of this package is imported when it is first used. So every process of this package starts fast, and only
:class:`SpotSession` and :func:`load_weights` import torch.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = [
    "Preempted",
    "SpotConfig",
    "SpotSession",
    "__version__",
    "export_weights",
    "load_weights",
    "prefetch",
]

TYPE_CHECKING = False  # type checkers take it for that of typing, whose import takes longer than this package
if TYPE_CHECKING:
    from .config import SpotConfig
    from .errors import Preempted
    from .export.safetensors import export_weights
    from .resume.prefetch import prefetch
    from .resume.tensors import load_weights
    from .session import SpotSession
else:  # a type checker would accept any name from a __getattr__

    def __getattr__(name: str) -> object:
        from importlib import import_module

        modules = {
            "Preempted": ".errors",
            "SpotConfig": ".config",
            "SpotSession": ".session",
            "export_weights": ".export.safetensors",
            "load_weights": ".resume.tensors",
            "prefetch": ".resume.prefetch",
        }
        if name not in modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
