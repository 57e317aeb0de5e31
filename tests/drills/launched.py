"""What launchers start: ``launched.py FOLDER SETTINGS`` is :mod:`lightning_train` as a program of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning_train

if __name__ == "__main__":
    lightning_train.main(sys.argv[1], json.loads(sys.argv[2]))
    Path(sys.argv[1], "after-fit").touch()
