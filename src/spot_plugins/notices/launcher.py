"""How long the launcher in front of this process waits between its SIGTERM and its SIGKILL."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ELASTIC_TIMEOUT_S: Final = 30.0
"""What torchrun waits unless it is told otherwise; ``accelerate launch`` with several processes is torchrun too."""

FLAGS: Final = ("--shutdown-timeout", "--shutdown_timeout")
VARIABLES: Final = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # the first one wins


def elastic_timeout_s(environ: Mapping[str, str] = os.environ, command: Sequence[str] | None = None) -> float | None:
    """
    Return the timeout of the elastic agent that started this process, None if there is none.

    Args:
        environ: Environment variables; the agent's own are inherited.
        command: Words of the agent's command line. None: those of the parent process.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    words = _parents_command() if command is None else command
    given = [_value(words, index) for index, word in enumerate(words) if word.partition("=")[0] in FLAGS]
    for text in (*given[-1:], *(environ.get(name, "") for name in VARIABLES)):
        try:
            return float(text)
        except ValueError:
            continue
    return ELASTIC_TIMEOUT_S


def advice(timeout_s: float, grace_s: float) -> str | None:
    """Return what to tell a user whose launcher kills before the grace is over; None if it does not."""
    if timeout_s >= grace_s:
        return None
    return (
        f"the elastic launcher kills its processes {timeout_s:g} s after a SIGTERM, but grace_seconds={grace_s:g}: "
        f"only {timeout_s:g} s will be used. Start torchrun with --shutdown-timeout {math.ceil(grace_s)}, or set "
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={math.ceil(grace_s)} in its environment (accelerate launch: only the latter)"
    )


def _value(words: Sequence[str], index: int) -> str:
    _, has_value, value = words[index].partition("=")
    return value if has_value else "".join(words[index + 1 : index + 2])


def _parents_command() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
