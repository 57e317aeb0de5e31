"""``spot show``: list the committed steps of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError, SpotError


def show(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
) -> None:
    """
    List the committed steps of the run at URL, newest first.

    KEPT names whoever keeps the step from being pruned. STARTED is the start of the attempt that saved it, in UTC.
    """
    from ..resume.stored import stored_steps  # not for every verb: it imports the clients of stores

    try:
        steps = stored_steps(url)
    except SpotError as error:
        typer.echo(f"spot show: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    rows = [("STEP", "ATTEMPT", "RANKS", "MB", "KEPT", "STARTED")]
    for each in steps:
        size = "damaged" if each.num_bytes is None else f"{each.num_bytes / 1e6:.1f}"
        kept, started = ", ".join(each.kept_by) or "-", each.started_at or "-"
        rows.append((str(each.step), str(each.attempt), str(each.world_size), size, kept, started))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:4], widths, strict=False)]
        cells += [cell.ljust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        typer.echo("  ".join(cells).rstrip())
