"""The launcher in front of this process: whether it passes on a SIGTERM, and how long it waits before its SIGKILL."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import roster

ELASTIC_TIMEOUT_S: Final = 30.0
"""What torchrun waits unless it is told otherwise; ``accelerate launch`` with several processes is torchrun too."""

FLAGS: Final = ("--shutdown-timeout", "--shutdown_timeout")
TIMEOUT_VARIABLES: Final = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # the first one wins

SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "busybox"})

_ACCELERATE: Final = ("accelerate", "accelerate.commands.accelerate_cli")  # before the word "launch"
_ACCELERATE_LAUNCH: Final = ("accelerate-launch", "accelerate.commands.launch")
_WITH_VALUE: Final = ("-X", "-W")  # options of python


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
    for text in (*given[-1:], *(environ.get(name, "") for name in TIMEOUT_VARIABLES)):
        try:
            return float(text)
        except ValueError:
            continue
    return ELASTIC_TIMEOUT_S


def timeout_s(environ: Mapping[str, str], launcher: Launcher) -> float | None:
    """
    Return how long after a SIGTERM this process is killed by what started it, ``spot run`` or the elastic agent.

    None where nobody kills. The arguments are those of :func:`elastic_timeout_s`.
    """
    given = [each for each in (_spot_run_grace_s(environ), elastic_timeout_s(environ, launcher)) if each is not None]
    return min(given, default=None)


def advice(environ: Mapping[str, str], launcher: Launcher, grace_s: float) -> str | None:
    """Return what to tell a user whose launcher takes the grace away, or a part of it; None if it does not."""
    least_s = timeout_s(environ, launcher)
    if least_s is None:
        return _deaf(environ, launcher)
    if least_s >= grace_s:
        return None
    spot_run_s = _spot_run_grace_s(environ)
    if spot_run_s is not None and spot_run_s < grace_s:  # first, as torchrun's timeout is made of it
        return (
            f"spot run kills its processes {spot_run_s:g} s after a SIGTERM, but grace_seconds={grace_s:g}: only "
            f"{least_s:g} s will be used. Start it with: spot run --grace-seconds {grace_s:g} -- ..."
        )
    return (
        f"the elastic launcher kills its processes {least_s:g} s after a SIGTERM, but grace_seconds={grace_s:g}: "
        f"only {least_s:g} s will be used. Start torchrun with --shutdown-timeout {math.ceil(grace_s)}, or set "
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
    program, argument = (*_program(words), "", "")[:2]
    if program in _ACCELERATE_LAUNCH or (program in _ACCELERATE and argument == "launch"):
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


def _program(words: Sequence[str]) -> Sequence[str]:
    """Return what python, the first of *words*, is told to run, a script or a module, and its arguments."""
    index = 1
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in _WITH_VALUE else 1  # behind -m is the module
    return words[index:]


def _spot_run_grace_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get(roster.GRACE_VARIABLE)
    return None if text is None else float(text)
