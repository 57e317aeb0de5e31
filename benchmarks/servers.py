"""Servers that tests and benchmarks share: an S3 server (SeaweedFS) on this machine, and free ports."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from ports import free_port
from servers import S3Server

__all__ = ["S3Server", "free_port"]
