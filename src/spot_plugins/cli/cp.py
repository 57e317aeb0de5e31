"""``spot cp``: copy a run to another store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .output import Progress, errors_of, plain, print_json, size


def cp(
    url: Annotated[str, typer.Argument(help="URL of the run.")],
    target: Annotated[str, typer.Argument(help="URL of the copy: an empty place, or an earlier copy of the same run.")],
    every: Annotated[bool, typer.Option("--all", help="Copy all committed steps, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Copy the newest committed step of the run at URL to TARGET. A training can continue from there.

    Every byte is verified on the way, and a step is committed at TARGET last. If the copy is interrupted, run it again:
    what is there with the same content is not put again.

    Example: spot cp s3://bucket/run-7 /data/run-7
    """
    from ..upkeep.copy import copy_run  # not for every verb: it imports the clients of stores

    with errors_of("cp"), Progress("copying") as report:
        found = copy_run(url, target, every=every, report=report)
    is_good = any(each.problem is None and not each.is_gone for each in found)
    is_good &= all(each.problem is None for each in found)
    if as_json:
        steps = [
            {"step": each.step_id.step, "attempt": each.step_id.attempt}
            | {name: value for name, value in asdict(each).items() if name != "step_id"}
            for each in found
        ]
        print_json({"is_good": is_good, "steps": steps})
    for each in found:
        name = f"step {each.step_id.step} of attempt {each.step_id.attempt}"
        if each.problem is not None:
            typer.echo(f"spot cp: {name} is damaged, so it was not copied: {plain(each.problem)}", err=True)
        elif each.is_gone:
            typer.echo(f"spot cp: {name} was pruned meanwhile, so it was not copied", err=True)
        elif not as_json:
            typer.echo(f"{name}: put {each.num_put} objects, {size(each.num_bytes)}; {each.num_there} were there")
    if not is_good:
        raise typer.Exit(1)
