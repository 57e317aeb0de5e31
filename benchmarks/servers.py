"""The S3 server that the tests use, for benchmarks: SeaweedFS on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import S3Server

__all__ = ["S3Server"]
