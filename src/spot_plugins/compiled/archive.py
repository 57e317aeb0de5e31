"""The archive of compiled code: one zip file, without compression because the training needs the processor."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_ARTIFACTS: Final = "artifacts"
_LIBRARIES: Final = "libraries/"


@dataclass(frozen=True, slots=True)
class Compiled:
    """Code that a process has compiled."""

    artifacts: bytes
    """The result of ``torch.compiler.save_cache_artifacts()``."""
    libraries: Mapping[str, bytes]
    """Shared libraries by their path below the folder of Inductor. The artifacts have only the sources of these."""

    def encode(self) -> bytes:
        """Return the archive."""
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as archive:
            archive.writestr(_ARTIFACTS, self.artifacts)
            for path, library in self.libraries.items():
                archive.writestr(f"{_LIBRARIES}{path}", library)
        return memory.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Compiled:
        """
        Return what :meth:`encode` wrote.

        Raises:
            KeyError, zipfile.BadZipFile: *data* is something else.
        """
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            paths = [name for name in archive.namelist() if name.startswith(_LIBRARIES)]
            libraries = {path.removeprefix(_LIBRARIES): archive.read(path) for path in paths}
            return cls(archive.read(_ARTIFACTS), libraries)
