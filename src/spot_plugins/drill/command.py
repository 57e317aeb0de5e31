"""The command of a training: the launcher in it, another number of processes for it, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import ConfigError

_TORCHRUN: Final = ("--nproc-per-node", "--nproc_per_node")
_ACCELERATE: Final = ("--num_processes", "--num-processes")
_MODULES: Final = {
    "torch.distributed.run": _TORCHRUN,
    "accelerate.commands.launch": _ACCELERATE,
}


def with_ranks(command: Sequence[str], num_ranks: int) -> tuple[str, ...]:
    """
    Return *command* with *num_ranks* processes.

    Raises:
        ConfigError: No launcher is in it whose number of processes is an argument.
    """
    launcher = _launcher(command)
    if launcher is None:
        raise ConfigError(
            f"ranks={num_ranks}: the number of processes can only be changed for torchrun and accelerate launch. Begin "
            f"the command with one of them, or with spot run -- and one of them, or leave --ranks away"
        )
    start, names = launcher
    words, option = list(command), names[0]
    for index in range(start, len(words)):
        name, is_whole, _ = words[index].partition("=")
        if name in names:
            words[index : index + (1 if is_whole else 2)] = [f"{name}={num_ranks}"]
            return tuple(words)
        if name.endswith(".py"):  # the script. What follows is its own
            break
    return (*words[:start], f"{option}={num_ranks}", *words[start:])


def gives_143(command: Sequence[str]) -> bool:
    """Return whether the exit code of *command* is that of its ranks, which is 143 after a notice."""
    return _is_spot_run(command) or (Path(command[0]).name.startswith("python") and _launcher(command) is None)


def check_launcher(command: Sequence[str]) -> None:
    """
    Check that *command* starts its ranks as processes of their own.

    Raises:
        ConfigError: No launcher is known in it.
    """
    if not _is_spot_run(command) and _launcher(command) is None:
        raise ConfigError(
            "faults=agent-kill: the command has no launcher that could be killed. Begin it with torchrun, accelerate "
            "launch or spot run --, or leave agent-kill away"
        )


def _is_spot_run(command: Sequence[str]) -> bool:
    names = [Path(word).name for word in command]
    return names[:2] == ["spot", "run"] or "spot_plugins.cli" in names


def _launcher(command: Sequence[str]) -> tuple[int, tuple[str, str]] | None:
    """Return the index of the first word after a launcher, and the names of its option for the number of processes."""
    for index, word in enumerate(command):
        name, following = Path(word).name, list(command[index + 1 : index + 2])
        if name == "torchrun":
            return index + 1, _TORCHRUN
        if name == "accelerate-launch":
            return index + 1, _ACCELERATE
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and following == ["launch"]:
            return index + 2, _ACCELERATE
        if word in _MODULES and index and command[index - 1] == "-m":
            return index + 1, _MODULES[word]
        if name.endswith(".py"):
            return None
    return None
