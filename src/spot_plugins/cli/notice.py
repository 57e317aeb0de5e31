"""``spot notice``: say that a machine will be taken, to rehearse it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..notices.file import is_page
from .checks import seconds


def notice(
    file: Annotated[
        str, typer.Argument(envvar="SPOT_NOTICE_FILE", help="The training's notice_file.", show_default=False)
    ],
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds until the machine is taken.", show_default="what the training was told", callback=seconds
        ),
    ] = None,
) -> None:
    """Write FILE, on which trainings with ``notice_file=FILE`` save and leave as if a cloud had told them to."""
    if is_page(file):
        raise typer.BadParameter(f"{file} is a page: only its server can change it", param_hint="FILE")
    document = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
    # Whole from the first look on, and newer than one that was there.
    made = Path(f"{file}.{os.getpid()}.tmp")
    try:
        made.write_text(json.dumps(document) + "\n")
        made.replace(file)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}", param_hint="FILE") from error
    typer.echo(f"wrote {file}")
