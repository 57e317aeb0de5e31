"""``spot prune``: remove old steps of a run, and what no step names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Progress, errors_of, plain, print_json, size

if TYPE_CHECKING:
    from ..upkeep.prune import PrunePlan


def prune(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    keep_last: Annotated[
        int, typer.Option(min=1, help="Number of the newest committed steps that stay.", show_default=False)
    ],
    delete: Annotated[bool, typer.Option("--delete", help="Remove them. Without it they are only listed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    List what can be removed from the run at URL, and remove it with --delete.

    These are the committed steps before the newest N, older incomplete steps, and blobs that no step names if nothing
    was put for a day. Steps that somebody keeps stay. A training may run meanwhile.

    Before --delete removes a committed step, it reads every byte of the newest one. If that is damaged, nothing is
    removed, because an older step may be needed.

    Example: spot prune s3://bucket/run-7 --keep-last 2 --delete
    """
    from ..upkeep.prune import check_newest, plan_prune  # not for every verb: it imports the clients of stores
    from ..upkeep.prune import prune as prune_run

    with errors_of("prune"):
        store, plan = plan_prune(url, keep_last)
    if as_json:
        print_json(_document(plan, deletes=delete))
    else:
        _print(plan, deletes=delete)
    if delete:
        with errors_of("prune"):
            with Progress("verifying") as report:
                check_newest(url, plan, report)
            prune_run(store, plan, keep_last, on_removed=lambda text: typer.echo(text, err=as_json))


def _print(plan: PrunePlan, *, deletes: bool) -> None:
    for each in plan.steps:
        kind = "old" if each.is_committed else "incomplete"
        typer.echo(f"step {each.step_id.step} of attempt {each.step_id.attempt}: {kind}, {size(each.num_bytes)}")
    for orphan in plan.orphans:
        typer.echo(f"{plain(orphan.key)}: no step names it, {size(orphan.num_bytes)}")
    if plan.left_because is not None:
        typer.echo(f"objects that no step may name are left, because {plan.left_because}")
    if not plan.steps and not plan.orphans:
        typer.echo("there is nothing to remove")
    elif not deletes:
        typer.echo(f"{size(plan.num_bytes)} can be removed: run it again with --delete")


def _document(plan: PrunePlan, *, deletes: bool) -> dict[str, Any]:
    return {
        "deletes": deletes,
        "num_bytes": plan.num_bytes,
        "steps": [
            {
                "step": each.step_id.step,
                "attempt": each.step_id.attempt,
                "is_committed": each.is_committed,
                "num_bytes": each.num_bytes,
            }
            for each in plan.steps
        ],
        "orphans": [{"key": each.key, "num_bytes": each.num_bytes} for each in plan.orphans],
        "orphans_left_because": plan.left_because,
    }
