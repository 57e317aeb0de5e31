"""A pause of Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """
    Let Python look for no unreachable cycles within this block, on any thread.

    Whoever makes many objects and drops none calls the collector again and again, and each time it finds nothing. With
    20,000 tensors this takes more time than the work itself. A collector that is off already stays off.
    """
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()
