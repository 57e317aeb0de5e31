"""The program that launchers start: ``launched.py SETTINGS`` is :mod:`lightning_train`, and a line after it."""

from __future__ import annotations

import sys

import lightning_train
from drill_settings import Settings

if __name__ == "__main__":
    settings = Settings.decode(sys.argv[1])
    lightning_train.main(settings)
    (settings.path / "after-fit").touch()
