"""``spot drill``: interrupt a training of the user, and prove that it is the same as when it is left alone."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..drill.faults import DEFAULT_FAULTS, FAULTS, faults_of
from .checks import seconds
from .output import errors_of, plain, print_json

if TYPE_CHECKING:
    from ..drill.runner import Options

_DEFAULT_NAMES: Final = ",".join(each.name for each in DEFAULT_FAULTS)
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def drill(
    command: Annotated[
        list[str],
        typer.Argument(help="The training command, as you start it: python ..., torchrun ..., spot run -- ..."),
    ],
    faults: Annotated[
        str, typer.Option(help=f"Faults to inject, with commas between them, of {', '.join(FAULTS)}.")
    ] = _DEFAULT_NAMES,
    kills: Annotated[
        int | None, typer.Option(min=1, help="Number of faults, taken in turn.", show_default="each once")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn: the steps and the ranks that are hit.")] = 0,
    ranks: Annotated[
        str | None,
        typer.Option(
            help="Processes of each start, such as 2,1,2. The first number is also that of the control, and the last "
            "one that of all further starts.",
            show_default="as in the command",
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            help="Seconds from a notice until everything is killed.",
            callback=seconds,
            show_default="grace_seconds of the training",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="End the training after this step.", show_default="its own end")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    html: Annotated[str | None, typer.Option(help="Write a page with a timeline.", show_default=False)] = None,
    junit: Annotated[str | None, typer.Option(help="Write a JUnit file, for CI.", show_default=False)] = None,
) -> None:
    """
    Run COMMAND left alone, then interrupt it and start it again, and prove that both are the same training.

    It trains in a temporary folder, never at the URL of the training, and needs no change of the program. The exit code
    is 1 if a promise was broken.

    Example: spot drill --steps 60 -- python train.py
    """
    from ..drill.runner import Options  # not for every verb: it imports the clients of stores

    for path, option in ((html, "--html"), (junit, "--junit")):
        if path is not None:
            _write(path, "", option)  # because a path that cannot be written must not be found out at the end
    with errors_of("drill"):
        options = Options(
            faults=faults_of(faults),
            num_faults=kills,
            seed=seed,
            ranks=_ranks_of(ranks),
            grace_s=grace,
            max_steps=steps,
        )
        with _interruptible():
            is_kept = _run(command, options, as_json, html, junit)
    raise typer.Exit(0 if is_kept else 1)


def _run(command: list[str], options: Options, as_json: bool, html: str | None, junit: str | None) -> bool:
    """Run the drill in a folder of its own, and show the result. Return whether all promises were kept."""
    from ..drill.page import page_of
    from ..drill.processes import clear
    from ..drill.runner import Runner
    from ..drill.text import document_of, junit_of, text_of
    from ..drill.verdict import judge

    folder = Path(tempfile.mkdtemp(prefix="spot-drill-"))
    keeps = False
    try:
        verdict = judge(Runner(command, options, folder, _teller()).run())
        for path, option, made in ((html, "--html", page_of), (junit, "--junit", junit_of)):
            if path is not None:
                _write(path, made(verdict), option)
                typer.echo(f"wrote {path}", err=True)
        if as_json:
            print_json(document_of(verdict))
        else:
            typer.echo(text_of(verdict))
        keeps = not verdict.is_kept
        return verdict.is_kept
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)  # because nothing may stay behind
        clear(folder, keeps_output=keeps)
        if keeps:
            typer.echo(f"spot drill: what each start printed is in {folder}", err=True)


def _teller() -> Callable[[str], None]:
    began_at = time.monotonic()

    def tell(text: str) -> None:
        typer.echo(f"{time.monotonic() - began_at:7.1f} s  {plain(text)}", err=True)

    return tell


def _write(path: str, text: str, option: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint=option) from error


def _ranks_of(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        ranks = tuple(map(int, text.split(",")))
    except ValueError:
        ranks = ()
    if not ranks or min(ranks) < 1:
        raise typer.BadParameter(f"{text} must be numbers from 1 on, with commas between them", param_hint="--ranks")
    return ranks


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the ``with`` block by an exception on Ctrl-C, SIGTERM and SIGHUP, so that it ends what it has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    before = {number: signal.signal(number, interrupt) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
