"""The settings of one run of the checks, as each process of a check gets them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The device, the sizes and the folder for everything that a check stores."""

    device: str
    scale: str
    """``full``, ``small`` (about 1 GB per state) or ``tiny`` (for a machine without a GPU)."""
    folder: str
    memory_gib: float | None = None
    """Memory of the machine. None: what the kernel reports, which is too low where memory grows as it is used."""

    @property
    def has_cuda(self) -> bool:
        """True if the checks run on a CUDA device."""
        return self.device == "cuda"

    def pick(self, full: Any, small: Any, tiny: Any) -> Any:
        """Return the value for the scale of this run."""
        return {"full": full, "small": small, "tiny": tiny}[self.scale]

    def encode(self) -> str:
        """Return the text for :meth:`decode`."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Settings:
        """Return the settings that :meth:`encode` has written."""
        return cls(**json.loads(text))
