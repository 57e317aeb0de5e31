"""The launcher that started this process, its handling of SIGTERM, and its time limit before SIGKILL."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import roster

ELASTIC_TIMEOUT_S: Final = 30.0
"""Default timeout in seconds of torchrun, and so of ``accelerate launch`` with several processes."""

FLAGS: Final = ("--shutdown-timeout", "--shutdown_timeout")
TIMEOUT_VARIABLES: Final = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # the first one wins

OWN_STORE_VARIABLE: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable of torchrun's dynamic rendezvous. With "1" the ranks of each life have a store of their own."""

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
    """Return the launcher, read from the command line of the parent process."""
    pid = os.getppid()
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return Launcher(pid, words)


def elastic_timeout_s(environ: Mapping[str, str], launcher: Launcher) -> float | None:
    """
    Return the timeout in seconds of the elastic agent that started this process, or None if there is no agent.

    Args:
        environ: Environment variables, which include those of the agent.
        launcher: The process that started this one.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    words = launcher.command
    given = [value_of(words, index) for index, word in enumerate(words) if word.partition("=")[0] in FLAGS]
    for text in (*given[-1:], *(environ.get(name, "") for name in TIMEOUT_VARIABLES)):
        try:
            return float(text)
        except ValueError:
            continue
    return ELASTIC_TIMEOUT_S


def timeout_s(environ: Mapping[str, str], launcher: Launcher) -> float | None:
    """
    Return the seconds from a SIGTERM until ``spot run`` or the elastic agent kills this process.

    None if neither of them started it. The arguments are those of :func:`elastic_timeout_s`.
    """
    given = [each for each in (_spot_run_grace_s(environ), elastic_timeout_s(environ, launcher)) if each is not None]
    return min(given, default=None)


def advice(environ: Mapping[str, str], launcher: Launcher, grace_s: float) -> str | None:
    """Return a remedy for a launcher that shortens the grace period or forwards no SIGTERM. None if it does neither."""
    least_s = timeout_s(environ, launcher)
    if least_s is None:
        return _advice_to_forward(environ, launcher)
    if least_s >= grace_s:
        return None
    spot_run_s = _spot_run_grace_s(environ)
    if spot_run_s is not None and spot_run_s < grace_s:  # first, because torchrun's timeout derives from it
        return (
            f"grace_seconds={grace_s:g}, but spot run kills its processes {spot_run_s:g} s after a SIGTERM, so only "
            f"{least_s:g} s will be used. Start it with: spot run --grace-seconds {grace_s:g} -- ..."
        )
    return (
        f"grace_seconds={grace_s:g}, but the elastic launcher kills its processes {least_s:g} s after a SIGTERM, so "
        f"only {least_s:g} s will be used. Start torchrun with --shutdown-timeout {math.ceil(grace_s)}, or set "
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={math.ceil(grace_s)} in its environment (accelerate launch: only the latter)"
    )


def restart_advice(environ: Mapping[str, str]) -> str | None:
    """
    Return a remedy for an elastic agent that may restart its ranks and then cannot, or None.

    The ranks of all lives share the store of the agent, so that new ranks find addresses of ranks that are gone. Seen
    with torch 2.13 under the static rendezvous, and under the dynamic one without :data:`OWN_STORE_VARIABLE`.
    """
    if environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return (
        f"torchrun may restart these ranks {environ['TORCHELASTIC_MAX_RESTARTS']} times, but restarted ranks will not "
        "find each other, because they read the addresses of the earlier ranks in torchrun's store. Start torchrun "
        f"with --standalone or --rdzv-backend c10d, and with {OWN_STORE_VARIABLE}=1 in its environment, which spot run "
        "sets. Or start it with --max-restarts 0 behind spot run --max-restarts"
    )


def value_of(words: Sequence[str], index: int) -> str:
    """Return the value of the option that is word *index* of a command line."""
    _, has_value, value = words[index].partition("=")
    return value if has_value else "".join(words[index + 1 : index + 2])


def _advice_to_forward(environ: Mapping[str, str], launcher: Launcher) -> str | None:
    """Return a remedy for a launcher that does not forward SIGTERM, or None if it does."""
    if roster.VARIABLE in environ:  # spot run sends a SIGTERM to each rank itself
        return None
    words = [Path(word).name for word in launcher.command]
    program, argument = (*_program(words), "", "")[:2]
    if program in _ACCELERATE_LAUNCH or (program in _ACCELERATE and argument == "launch"):
        return (
            "accelerate launch with one process dies of a SIGTERM and does not forward it, so this process gets no "
            "notice. Start it with: spot run -- accelerate launch ..."
        )
    if launcher.pid == 1 and words and words[0] in SHELLS:
        return (
            f"process 1 of this container is {words[0]}, which does not forward SIGTERM. Begin the last command of its "
            "script with exec, or with: spot run --"
        )
    return None


def _program(words: Sequence[str]) -> Sequence[str]:
    """Return the script or module in a command line of python, and its arguments."""
    index = 1
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in _WITH_VALUE else 1  # the module follows -m
    return words[index:]


def _spot_run_grace_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get(roster.GRACE_VARIABLE)
    return None if text is None else float(text)
