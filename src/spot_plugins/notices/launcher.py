"""The launcher in front of this process: whether it passes on a SIGTERM, and how long it waits before its SIGKILL."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import roster

ELASTIC_TIMEOUT_S: Final = 30.0
"""What torchrun waits unless it is told otherwise; ``accelerate launch`` with several processes is torchrun too."""

FLAGS: Final = ("--shutdown-timeout", "--shutdown_timeout")
VARIABLES: Final = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # the first one wins


SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "busybox"})


@dataclass(frozen=True, slots=True)
class Launcher:
    """The parent of this process."""

    pid: int
    command: Sequence[str]
    """The words of its command line."""


def parent() -> Launcher:
    """Return who started this process."""
    pid = os.getppid()
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return Launcher(pid, words)


def elastic_timeout_s(environ: Mapping[str, str], launcher: Launcher) -> float | None:
    """
    Return the timeout of the elastic agent that started this process, None if there is none.

    Args:
        environ: Environment variables; the agent's own are inherited.
        launcher: Who started this process.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    words = launcher.command
    given = [_value(words, index) for index, word in enumerate(words) if word.partition("=")[0] in FLAGS]
    for text in (*given[-1:], *(environ.get(name, "") for name in VARIABLES)):
        try:
            return float(text)
        except ValueError:
            continue
    return ELASTIC_TIMEOUT_S


def advice(environ: Mapping[str, str], launcher: Launcher, grace_s: float) -> str | None:
    """Return what to tell a user whose launcher takes the grace away, or a part of it; None if it does not."""
    timeout_s = elastic_timeout_s(environ, launcher)
    if timeout_s is None:
        return _deaf(environ, launcher)
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


def _deaf(environ: Mapping[str, str], launcher: Launcher) -> str | None:
    """Return what to tell a user whose launcher does not pass on a SIGTERM at all."""
    if roster.VARIABLE in environ:  # spot run sees to it
        return None
    words = [Path(word).name for word in launcher.command]
    modules = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli"}
    if words[1:3] == ["accelerate", "launch"] or modules & set(words[:3]):
        return (
            "accelerate launch with one process does not pass on a SIGTERM: it dies of it, and this process is never "
            "told. Start it with: spot run -- accelerate launch ..."
        )
    if launcher.pid == 1 and words and words[0] in SHELLS:
        return (
            f"process 1 of this container is {words[0]}, which passes on no SIGTERM. Begin the last command of its "
            "script with exec, or with: spot run --"
        )
    return None
