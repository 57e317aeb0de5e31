"""Drills of whole training commands, as a function."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..drill.processes import clear
from ..drill.runner import Options, Runner, Tell
from ..drill.target import Fault
from ..drill.verdict import Verdict, judge


def drill(
    command: Sequence[str],
    faults: Sequence[Fault],
    *,
    max_steps: int | None = None,
    grace_seconds: float | None = None,
    ranks: Sequence[int] = (),
    seed: int = 0,
    tell: Tell = lambda text: None,
) -> Verdict:
    """
    Run *command* left alone, then under *faults*, and judge whether both are the same training.

    It trains in a temporary folder, which is removed. Every wait has a limit.

    Args:
        command: The training command.
        faults: The faults, in their order.
        max_steps: The step after which the training ends. None: its own end.
        grace_seconds: Seconds from a notice until everything is killed. None: as the training expects.
        ranks: Number of processes of each start, the last one for all others. Empty: as in the command.
        seed: Seed of what is drawn: the steps, and the ranks that are hit.
        tell: Gets a line for each thing that happens.

    Returns:
        The verdict. ``is_kept`` says whether all promises were kept, and ``first_broken`` has the reason in words.

    Raises:
        ConfigError: The command or an argument cannot work.
    """
    options = Options(faults=tuple(faults), seed=seed, ranks=tuple(ranks), grace_s=grace_seconds, max_steps=max_steps)
    folder = Path(tempfile.mkdtemp(prefix="spot-drill-"))
    try:
        return judge(Runner(command, options, folder, tell).run())
    finally:
        clear(folder)
