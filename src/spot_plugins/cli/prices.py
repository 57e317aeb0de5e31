"""``spot prices``: what GPUs cost now, where, and how often they are taken back."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from .checks import seconds

if TYPE_CHECKING:
    from ..market.question import Question
    from ..market.useful import Figures

NOT_BELOW: Final = 1
UNKNOWN: Final = 3

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def size(text: str | None) -> float | None:
    """Return the bytes that *text* names, such as 80GB. Raise :exc:`typer.BadParameter` for any other text."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None or not (number := float(found[1])):
        raise typer.BadParameter(f"{text} must be a number of bytes above 0, such as 80GB or 1.5GiB")
    power = 1 + "KMGT".index(found[2].upper()) if found[2] else 0
    return float(number * (1024 if found[3] else 1000) ** power)


def positive(value: float | None) -> float | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if it is not a finite number above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value} must be a number above 0")
    return value


def known_gpu(text: str) -> str:
    """Return the normal name of the GPU *text*. Raise :exc:`typer.BadParameter` if it is not known."""
    from ..market.gpus import NAMES, normal_name

    name = normal_name(text)
    if name is None:
        raise typer.BadParameter(f"{text} is not one of {', '.join(NAMES)}")
    return name


def _tool(value: str | None) -> str | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if it is not the name of a tool."""
    from ..market.candidates import TOOLS

    if value is not None and value not in TOOLS:
        raise typer.BadParameter(f"{value} is not one of {', '.join(TOOLS)}")
    return value


def _directory(value: str | None) -> str | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if no metrics could be written there."""
    if value is not None and not os.path.isdir(value):
        raise typer.BadParameter(f"{value} is no directory: give that of node_exporter's textfile collector")
    if value is not None and find_spec("prometheus_client") is None:
        raise typer.BadParameter("it needs the package prometheus_client: pip install 'spot_plugins[metrics]'")
    return value


def prices(
    gpu: Annotated[str, typer.Option(help="The GPU, such as h100 or a100-80gb.", callback=known_gpu)],
    count: Annotated[
        int | None, typer.Option(min=1, max=1024, help="GPUs in one machine.", show_default="any number")
    ] = None,
    below: Annotated[
        float | None, typer.Option(help="Exit with 0 only if an offer costs less per GPU and hour.", callback=positive)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
    emit: Annotated[
        str | None,
        typer.Option(help="Print where to rent, for a file of skypilot or dstack.", callback=_tool, show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Use no answers of the last 10 minutes.")] = False,
    file: Annotated[
        str | None, typer.Option("--from", help="Read offers from a JSON or CSV file, and ask nobody.")
    ] = None,
    num_bytes: Annotated[
        str | None, typer.Option("--bytes", help="Size of a checkpoint. Sorts by the price of a useful hour.")
    ] = None,
    upload: Annotated[str | None, typer.Option(help="Bytes per second from a machine to the store.")] = None,
    step_seconds: Annotated[float | None, typer.Option(help="Seconds of a step.", callback=seconds)] = None,
    restart_seconds: Annotated[
        float | None, typer.Option(help="Seconds from the start of a machine to its first step.", callback=seconds)
    ] = None,
    every_seconds: Annotated[
        float | None, typer.Option(help="Seconds between saves.", callback=seconds, show_default="one after another")
    ] = None,
    interruptions_per_day: Annotated[
        float | None, typer.Option(help="Assumed where a provider publishes no rate.", callback=positive)
    ] = None,
    watch: Annotated[float | None, typer.Option(help="Ask again every so many seconds.", callback=seconds)] = None,
    notify: Annotated[
        str | None, typer.Option(help="Command or http address that gets the offer as JSON.", show_default=False)
    ] = None,
    textfile: Annotated[
        str | None,
        typer.Option(help="Directory of node_exporter's text files, for Prometheus.", callback=_directory),
    ] = None,
) -> None:
    """
    Print what GPUs cost, by live prices and price lists, the cheapest first.

    The exit code is 1 if there is no offer, or none below the price, and 3 if no provider answers.

    Example: spot prices --gpu h100 --count 8 --below 1.9
    """
    from ..market.base import Query  # not for every verb: they import clients of the web
    from ..market.candidates import CandidatesError
    from ..market.question import Question
    from ..market.rows import RowsError

    _check_emit(emit, count, as_json or watch is not None)
    needed = {"--upload": upload, "--step-seconds": step_seconds, "--restart-seconds": restart_seconds}
    figures = _figures(num_bytes, needed, every_seconds, interruptions_per_day)
    question = Question(Query(gpu, count), file, figures, below, typer.echo, _say)
    try:
        if watch is not None:
            _watch(question, watch, notify, as_json, textfile)
        if notify is not None:
            raise typer.BadParameter("it needs --watch SECONDS", param_hint="--notify")
        question.ask(fresh=fresh, as_json=as_json, tool=emit)
        _write(question, textfile)
    except (RowsError, CandidatesError) as error:
        _say(str(error))
        raise typer.Exit(2 if isinstance(error, RowsError) else NOT_BELOW) from None
    raise typer.Exit(_code(question))


def _check_emit(tool: str | None, count: int | None, has_other_form: bool) -> None:
    """Raise :exc:`typer.BadParameter` if ``--emit`` is given and cannot be obeyed."""
    if tool is None:
        return
    if has_other_form:
        raise typer.BadParameter("it excludes --json and --watch", param_hint="--emit")
    if count is None:
        raise typer.BadParameter("it needs --count, the GPUs in one machine", param_hint="--emit")


def _code(question: Question) -> int:
    """Return the exit code that tells what was found."""
    if not question.has_answer:
        return UNKNOWN
    is_found = question.best is not None if question.below is None else question.is_below
    return 0 if is_found else NOT_BELOW


def _figures(
    num_bytes: str | None, needed: dict[str, str | float | None], every_s: float | None, assumed_per_day: float | None
) -> Figures | None:
    """Return the figures of a training, or None without ``--bytes``. Raise :exc:`typer.BadParameter` if one lacks."""
    from ..market.useful import Figures

    given = {**needed, "--every-seconds": every_s, "--interruptions-per-day": assumed_per_day}
    if num_bytes is None:
        if unused := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter("it needs --bytes, the size of a checkpoint", param_hint=unused[0])
        return None
    if missing := [name for name, value in needed.items() if value is None]:
        raise typer.BadParameter(f"it needs {', '.join(missing)} as well", param_hint="--bytes")
    return Figures(
        checkpoint_bytes=size(num_bytes) or 0.0,
        upload_bytes_per_s=size(str(needed["--upload"])) or 0.0,
        step_s=float(needed["--step-seconds"] or 0.0),
        restart_s=float(needed["--restart-seconds"] or 0.0),
        every_s=every_s,
        assumed_per_day=assumed_per_day,
    )


def _write(question: Question, directory: str | None) -> None:
    """Write the offers as metrics. A file that cannot be written does not end a watch."""
    if directory is None or not question.has_answer:
        return  # the file of the last answer stays, and its time tells its age
    from ..market.textfile import write_offers

    try:
        write_offers(directory, question.query.gpu, question.offers, question.below)
    except OSError as error:
        _say(f"--textfile {directory} is not written: {error}")


def _watch(question: Question, every_s: float, target: str | None, as_json: bool, textfile: str | None) -> NoReturn:
    """Ask for ever. SIGINT and SIGTERM end the process at once, with the code that shells give for the signal."""
    from ..market.notify import check_target, notify
    from ..market.watch import Watch

    if question.below is None:
        raise typer.BadParameter("it needs --below PRICE", param_hint="--watch")
    if target is not None:
        try:
            check_target(target)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--notify") from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)

    def look() -> bool:
        question.ask(fresh=True, as_json=as_json, one_line=True)
        _write(question, textfile)
        return question.is_below

    def send() -> None:
        if target is not None:
            notify(target, question.message())

    Watch(every_s, look, send, _say).run()


def _end(number: int, _: FrameType | None) -> NoReturn:
    """Leave the call that the main thread is in. Threads that wait for a provider do not keep the process."""
    sys.exit(128 + number)


def _say(text: str) -> None:
    typer.echo(f"spot prices: {text}", err=True)
