"""Shared files without a pusher process around the thread that writes them."""

from __future__ import annotations

import os

from spot_plugins.push import FileWriter


def write_out(ring):
    """Bring what is in memory to the disk, as a pusher process does whose trainer is gone."""
    writer = FileWriter()
    writer.keep(ring.file.path, os.dup(ring.file.fd), len(ring.file.memory))
    writer.end()
    writer.close()


def write_nothing(file):
    """Take the place of a pusher process that never writes."""
