"""The one loop of this process that is open."""

from __future__ import annotations

import threading
from weakref import ReferenceType, ref

from ..errors import ConfigError
from ..notices.signals import check_signals_free
from ..session import SpotSession

_open: ReferenceType[object] | None = None


def claim(loop: object, name: str) -> None:
    """
    Make *loop*, a *name*, the one that is open.

    Raises:
        ConfigError: Another loop is open. Both would count the steps of all optimizers of the process as their own.
    """
    global _open
    other = None if _open is None else _open()
    if other is not None and other is not loop:
        raise ConfigError(
            f"another {name} is open in this process, and its `with` block has not ended. Let one block end before "
            f"the next one begins, and use one run for everything that is trained at the same time"
        )
    _open = ref(loop)


def release(loop: object) -> None:
    """Let another loop be opened, if *loop* is the one that is open."""
    global _open
    if _open is not None and _open() is loop:
        _open = None


def open_session(session: SpotSession) -> None:
    """Open *session*. It takes SIGTERM as a notice if this is the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        check_signals_free()
    session.open()
    if is_main:
        session.handle_signals()
