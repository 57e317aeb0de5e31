"""``spot verify``: read every byte of a step and compare it with its hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Progress, errors_of, plain, print_json, size

if TYPE_CHECKING:
    from ..upkeep.verify import Verification


def verify(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    step: Annotated[
        int | None, typer.Option(help="The step to verify.", show_default="the newest committed step")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Verify all committed steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Read every byte of a committed step of the run at URL, and compare it with its hash.

    The exit code is 0 if all is good, and 1 if something is damaged. After a good verification the run has a note with
    the time, verified.json. A training may write meanwhile: a step that it prunes is gone, not damaged. If it is
    interrupted, run it again: what it has read is not read again, unless it was put since.

    Example: spot verify s3://bucket/run-7 --all
    """
    from ..upkeep.verify import verify as verify_run  # not for every verb: it imports the clients of stores

    with errors_of("verify"), Progress("verifying") as report:
        result = verify_run(url, step, every=every, report=report)
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    if result.note_problem is not None:
        problem = plain(result.note_problem)
        typer.echo(f"spot verify: the time of this verification could not be stored: {problem}", err=True)
    if not result.is_good:
        raise typer.Exit(1)


def _print(result: Verification) -> None:
    for each in result.steps:
        name = f"step {each.step_id.step} of attempt {each.step_id.attempt}"
        if each.is_gone:
            typer.echo(f"{name}: gone, a training pruned it meanwhile")
        elif not each.damages:
            before = f", {size(each.num_bytes_before)} of them read before" if each.num_bytes_before else ""
            typer.echo(f"{name}: good, {each.num_objects} objects, {size(each.num_bytes)}{before}")
        for damage in each.damages:
            typer.echo(f"{name}: damaged: {plain(f'{damage.key} {damage.reason}')}")
    if any(each.damages for each in result.steps):
        typer.echo(
            "A resume continues from an older step, unless local copies of the job repair the damage. To repair it by "
            "hand, restore the older version of each object, or copy it from another copy of the run.",
            err=True,
        )
    elif not result.is_good:
        typer.echo("Nothing was verified, because each step was pruned meanwhile. Give a step that is kept.", err=True)


def _document(result: Verification) -> dict[str, Any]:
    steps = [
        {
            "step": each.step_id.step,
            "attempt": each.step_id.attempt,
            "state": "gone" if each.is_gone else "damaged" if each.damages else "good",
            "num_objects": each.num_objects,
            "num_bytes": each.num_bytes,
            "num_bytes_before": each.num_bytes_before,
            "damages": [{"key": damage.key, "reason": damage.reason} for damage in each.damages],
        }
        for each in result.steps
    ]
    return {"is_good": result.is_good, "verified_at": result.verified_at, "steps": steps}
