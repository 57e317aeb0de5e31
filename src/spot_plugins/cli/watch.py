"""``spot watch``: follow a run while it goes on."""

from __future__ import annotations

import json
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from ..clock import wall_time
from ..errors import StoreError
from .checks import price, seconds
from .output import errors_of, plain

if TYPE_CHECKING:
    from ..monitor.following import Status

EVERY_S: Final = 10.0


def watch(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document per line.")] = False,
    every: Annotated[float, typer.Option(help="Seconds from one look to the next.", callback=seconds)] = EVERY_S,
    spot_price: Annotated[
        float | None, typer.Option(help="Price of a spot GPU for an hour.", callback=price, show_default=False)
    ] = None,
    on_demand_price: Annotated[
        float | None, typer.Option(help="Price of an on-demand GPU for an hour.", callback=price, show_default=False)
    ] = None,
) -> None:
    """
    Follow the run at URL until it is finished: steps, the last commit, the rate, interruptions and goodput.

    It reads the event log alone, in which a step is at most 30 s old. It prints a line whenever something has changed.
    On a terminal the line is drawn again, until the attempt ends. The exit code is 0 once the run is finished.

    Example: spot watch s3://bucket/run-7 --spot-price 1.20
    """
    from ..monitor.figures import Prices  # not for every verb: it imports the clients of stores
    from ..monitor.following import Follower

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    with errors_of("watch"):
        follower = Follower(url, Prices(spot_price, on_demand_price))
        screen = _Screen(as_json)
        screen.show(status := follower.look(wall_time()))
    while status.how != "finished":
        # wait: --every; it looks again
        time.sleep(every)
        try:
            with errors_of("watch", passing=StoreError):
                status = follower.look(wall_time())
        except StoreError as error:
            typer.echo(f"spot watch: {plain(str(error))}. It is asked again in {every:g} s", err=True)
            continue
        screen.show(status)
    screen.end()


class _Screen:
    """The lines on stdout, the last one of which is drawn again on a terminal while the same attempt runs."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._redraws = sys.stdout.isatty() and not as_json
        self._shown: Status | None = None

    def show(self, status: Status) -> None:
        """Show *status*, if it is new or a line whose ages have changed can be drawn again."""
        before, self._shown = self._shown, status
        if self._as_json:
            if status != before:
                typer.echo(json.dumps(status.document(), allow_nan=False))
            return
        line = plain(status.line(wall_time()))
        if not self._redraws:
            if before is None or _facts(status) != _facts(before):
                typer.echo(line)
            return
        same = before is not None and (before.attempt, before.how) == (status.attempt, status.how)
        typer.echo(("\r\x1b[K" if same else "" if before is None else "\n") + line, nl=False)

    def end(self) -> None:
        """Leave the last line."""
        if self._redraws:
            typer.echo()


def _facts(status: Status) -> tuple[object, ...]:
    """Return what makes a new line. Figures that only grow with the time do not."""
    return status.attempt, status.how, status.step, status.committed_step, status.num_interruptions


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
