"""``spot report``: what a run has cost, from its event log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..clock import wall_time
from ..errors import ConfigError, SpotError
from .checks import price


def report(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    text: Annotated[bool, typer.Option("--text", help="Print the report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
    html: Annotated[
        str | None, typer.Option(help="The page to write. A file of this name is replaced.", show_default="report.html")
    ] = None,
    spot_price: Annotated[
        float | None, typer.Option(help="Price of a spot GPU for an hour.", callback=price, show_default=False)
    ] = None,
    on_demand_price: Annotated[
        float | None, typer.Option(help="Price of an on-demand GPU for an hour.", callback=price, show_default=False)
    ] = None,
    rate_per_month: Annotated[
        str | None,
        typer.Option(
            help="Share of the machines that the provider says it takes within 30 days, such as 10%, to compare.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """
    Report how the run at URL went: goodput, losses, saves, interruptions per day, and what to change.

    Without --text and --json it writes a page that needs no network. It reads the event log alone, also during the
    training. The exit code is 1 if the store does not answer, and 2 if no run is there or an option cannot work.

    Example: spot report s3://bucket/run-7 --text
    """
    from ..economics.quantities import share
    from ..monitor.figures import Prices  # not for every verb: it imports the clients of stores
    from ..monitor.page import page_of
    from ..monitor.reading import read_report
    from ..monitor.text import document_of, text_of

    if text + as_json + (html is not None) > 1:
        raise typer.BadParameter("give one of --text, --json and --html FILE", param_hint="--text")
    try:
        published = None if rate_per_month is None else share("rate_per_month", rate_per_month)
        found = read_report(url, Prices(spot_price, on_demand_price), wall_time(), published)
    except SpotError as error:
        typer.echo(f"spot report: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    if text:
        typer.echo(text_of(found))
    elif as_json:
        typer.echo(json.dumps(document_of(found), allow_nan=False))
    else:
        path = html or "report.html"
        try:
            Path(path).write_text(page_of(found), encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--html") from error
        typer.echo(f"wrote {path}")
