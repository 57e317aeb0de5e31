"""``spot run``: start a training so that notices reach every rank and no process remains at the end."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import DEFAULT_GRACE_S
from ..launch.supervisor import supervise
from .checks import seconds


def run(
    command: Annotated[
        list[str], typer.Argument(help="The command to run: torchrun ..., accelerate launch ..., python ...")
    ],
    grace_seconds: Annotated[
        float,
        typer.Option(
            envvar="SPOT_GRACE_SECONDS",
            help="Seconds from a signal until every process that remains is killed.",
            callback=seconds,
        ),
    ] = DEFAULT_GRACE_S,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Number of times to run the command again if it fails. Never after a notice.")
    ] = 0,
) -> None:
    """
    Run COMMAND, a launcher or a training, under a small init process.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 reach every rank as a notice. If the launcher dies, the ranks save and end. The
    process waits until every push is done. The exit code is 143 after a preemption, else that of the command.
    """
    try:
        code = supervise(command, grace_seconds, max_restarts)
    except OSError as error:
        if error.filename != command[0]:
            text, code = str(error), 125  # as of env and timeout, if the command is not the cause
        elif isinstance(error, FileNotFoundError):
            text, code = f"{command[0]} is not found", 127  # as of shells, also the next code
        else:
            text, code = f"{command[0]} cannot be executed: {error.strerror}", 126
        typer.echo(f"spot run: {text}", err=True)
    raise typer.Exit(code)
