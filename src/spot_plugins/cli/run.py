"""``spot run``: start a training so that notices reach it and nothing of it is left behind."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import DEFAULT_GRACE_S
from ..launch.supervisor import supervise
from .checks import seconds


def run(
    command: Annotated[list[str], typer.Argument(help="What to run: torchrun ..., accelerate launch ..., python ...")],
    grace_seconds: Annotated[
        float,
        typer.Option(
            envvar="SPOT_GRACE_SECONDS",
            help="From a signal until everything that is left is killed.",
            callback=seconds,
        ),
    ] = DEFAULT_GRACE_S,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Run it again so often if it fails; never after a notice.")
    ] = 0,
) -> None:
    """
    Run COMMAND, a launcher or a training, as a small init process.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 reach every rank as a notice. Ranks whose launcher dies save and leave. Pushes
    are waited for. The exit code is 143 after a preemption, else the command's.
    """
    try:
        code = supervise(command, grace_seconds, max_restarts)
    except OSError as error:
        if error.filename != command[0]:
            text, code = str(error), 125  # as env and timeout have it, for what is not the command's fault
        elif isinstance(error, FileNotFoundError):
            text, code = f"{command[0]} is not found", 127  # as shells have it, also the next one
        else:
            text, code = f"{command[0]} cannot be executed: {error.strerror}", 126
        typer.echo(f"spot run: {text}", err=True)
    raise typer.Exit(code)
