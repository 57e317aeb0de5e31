"""``spot notice``: write a notice by hand, to rehearse a preemption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..config import checked
from ..errors import ConfigError
from ..notices.file import is_page
from .checks import seconds


def notice(
    file: Annotated[
        str, typer.Argument(envvar="SPOT_NOTICE_FILE", help="The notice_file of the training.", show_default=False)
    ],
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds until the machine is taken.", show_default="grace_seconds of the training", callback=seconds
        ),
    ] = None,
) -> None:
    """Write FILE, so that trainings with ``notice_file=FILE`` save and end, as after the notice of a cloud."""
    if is_page(file):
        raise typer.BadParameter(
            f"{file} is a URL, and only its server can change it: give the path of a file", param_hint="FILE"
        )
    try:
        file = checked("notice_file", file)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from error
    document = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
    # A rename, so that a training never reads half a file, and always sees a newer one than before.
    made = Path(f"{file}.{os.getpid()}.tmp")
    try:
        made.write_text(json.dumps(document) + "\n")
        made.replace(file)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}", param_hint="FILE") from error
    typer.echo(f"wrote {file}")
