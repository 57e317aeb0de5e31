"""``spot show``: list the committed steps of a run, the tensors of a step, or what differs between two steps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .output import Progress, errors_of, plain, print_json, print_table, size

if TYPE_CHECKING:
    from ..upkeep.compare import Comparison, TensorDifference
    from ..upkeep.tensors import StepTensors

_MAX_VALUES: Final = 40  # in a text; JSON has all
_MAX_LETTERS: Final = 60


def show(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    step: Annotated[int | None, typer.Option(help="List the tensors of this step.", show_default=False)] = None,
    diff: Annotated[
        tuple[int, int] | None, typer.Option(help="Tell what differs between two steps.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    List the committed steps of the run at URL, newest first. Or show one of them, or the difference of two.

    KEPT names whoever keeps the step from being pruned. STARTED is the start of the attempt that saved it, in UTC.

    Example: spot show s3://bucket/run-7 --diff 1000 1200
    """
    if step is not None and diff is not None:
        raise typer.BadParameter("--step and --diff cannot both be given")
    # The imports are not for every verb, because they bring the clients of stores.
    with errors_of("show"):
        if diff is not None:
            from ..upkeep.compare import compare

            with Progress("comparing") as report:
                found = compare(url, *diff, report=report)
            _print_difference(found, as_json=as_json)
        elif step is not None:
            from ..upkeep.tensors import step_tensors

            _print_tensors(step_tensors(url, step), as_json=as_json)
        else:
            _print_steps(url, as_json=as_json)


def _print_steps(url: str, *, as_json: bool) -> None:
    from ..resume.stored import stored_steps

    steps = stored_steps(url)
    if as_json:
        print_json({"steps": [asdict(each) for each in steps]})
        return
    rows = [("STEP", "ATTEMPT", "RANKS", "MB", "KEPT", "STARTED")]
    for each in steps:
        megabytes = "damaged" if each.num_bytes is None else f"{each.num_bytes / 1e6:.1f}"
        kept, started = ", ".join(each.kept_by) or "-", each.started_at or "-"
        rows.append((str(each.step), str(each.attempt), str(each.world_size), megabytes, kept, started))
    print_table(rows, num_right=4)


def _print_tensors(found: StepTensors, *, as_json: bool) -> None:
    step_id, world_size = found.committed.step_id, found.committed.world_size
    totals: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, weight in found.tensors.items():
        totals[name.part][0] += 1
        totals[name.part][1] += weight.num_bytes
    if as_json:
        tensors = [
            {
                "name": name.name,
                "part": name.part,
                "rank": name.rank,
                "dtype": weight.dtype,
                "shape": weight.shape,
                "num_bytes": weight.num_bytes,
                "num_pieces": len(weight.pieces),
            }
            for name, weight in found.tensors.items()
        ]
        parts = [{"name": part, "num_tensors": n, "num_bytes": size} for part, (n, size) in totals.items()]
        head = {"step": step_id.step, "attempt": step_id.attempt, "world_size": world_size}
        print_json({**head, "parts": parts, "tensors": tensors})
        return
    rows = [("SIZE", "DTYPE", "PIECES", "RANK", "SHAPE", "NAME")]
    for name, weight in found.tensors.items():
        rank, shape = "all" if name.rank is None else str(name.rank), str([*weight.shape])
        rows.append((size(weight.num_bytes), weight.dtype, str(len(weight.pieces)), rank, shape, name.name))
    print_table(rows, num_right=4)
    for part, (num_tensors, num_bytes) in totals.items():
        typer.echo(f"part {plain(part)}: {num_tensors} tensors, {size(num_bytes)}")


def _print_difference(found: Comparison, *, as_json: bool) -> None:
    if as_json:
        steps = {name: {"step": each.step, "attempt": each.attempt} for name, each in _ends(found)}
        tensors = [
            {**asdict(each), "name": each.name.name, "rank": each.name.rank, "max_abs": _number(each.max_abs)}
            for each in found.tensors
        ]
        values = [asdict(each) for each in found.values]
        alike = found.num_tensors_alike
        print_json({**steps, "num_tensors_alike": alike, "tensors": tensors, "values": values})
        return
    (_, before), (_, after) = _ends(found)
    typer.echo(f"step {before.step} of attempt {before.attempt} -> step {after.step} of attempt {after.attempt}")
    if found.world_sizes[0] != found.world_sizes[1]:
        typer.echo(f"saved by {found.world_sizes[0]} ranks -> {found.world_sizes[1]} ranks")
    for each in found.tensors:
        typer.echo(plain(f"tensor {each.name}: {_told(each)}"))
    typer.echo(f"{found.num_tensors_alike} tensors are the same")
    for value in found.values[:_MAX_VALUES]:
        rank = f" of rank {value.rank}" if value.rank else ""
        typer.echo(plain(f"value {value.path}{rank}: {_short(value.before)} -> {_short(value.after)}"))
    if (more := len(found.values) - _MAX_VALUES) > 0:
        typer.echo(f"and {more} more values, which --json has")


def _ends(found: Comparison) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("before", found.before), ("after", found.after)


def _told(each: TensorDifference) -> str:
    if each.before is None:
        return f"added, {each.after}"
    if each.after is None:
        return f"removed, {each.before}"
    if each.num_items is None:
        return f"{each.before} -> {each.after}"
    distance = "" if each.max_abs is None else f", by {each.max_abs:.3g} at most"
    return f"{each.after}, {each.num_items} elements differ{distance}"


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)  # because JSON has no NaN


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 3]}..."
