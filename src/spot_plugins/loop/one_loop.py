"""The one loop of this process that is open."""

from __future__ import annotations

from weakref import ReferenceType, ref

from ..errors import ConfigError

_open: tuple[ReferenceType[object], str] | None = None  # the loop and its name


def claim(loop: object, name: str) -> None:
    """
    Make *loop*, which programs know by *name*, the one that is open.

    Raises:
        ConfigError: Another loop is open. Both would count the steps of all optimizers of the process as their own.
    """
    global _open
    other, others_name = (None, "") if _open is None else (_open[0](), _open[1])
    if other is not None and other is not loop:
        raise ConfigError(
            f"another {others_name} is open in this process, and its `with` block has not ended. Let one block end "
            f"before the next one begins, and use one run for everything that is trained at the same time"
        )
    _open = ref(loop), name


def release(loop: object) -> None:
    """Let another loop be opened, if *loop* is the one that is open."""
    global _open
    if _open is not None and _open[0]() is loop:
        _open = None
