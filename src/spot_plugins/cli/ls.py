"""``spot ls``: list the steps of a run, the incomplete ones too."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from ..clock import wall_time
from .output import age, errors_of, plain, print_json, print_table, size

if TYPE_CHECKING:
    from ..upkeep.listing import ListedStep


def ls(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    List the steps of the run at URL, newest first, also those that are incomplete or damaged.

    MARKS tells the step from which a resume continues, and who keeps a step from being pruned. STATE compares sizes
    and manifests. To compare every byte use spot verify.

    Example: spot ls s3://bucket/run-7
    """
    from ..upkeep.listing import list_run  # not for every verb: it imports the clients of stores

    with errors_of("ls"):
        found = list_run(url)
    if as_json:
        steps = [asdict(each) | {"modified_at": _iso(each.modified_at)} for each in found.steps]
        print_json({"steps": steps, "verified": found.verified})
        return
    rows = [("STEP", "ATTEMPT", "AGE", "SIZE", "RANKS", "MARKS", "STATE")]
    now = wall_time()
    for each in found.steps:
        old = "?" if each.modified_at is None else age(now - each.modified_at)
        ranks = f"{each.num_ranks}/{'?' if each.world_size is None else each.world_size}"
        marks = ", ".join([*(["newest"] if each.is_newest else []), *(f"kept by {owner}" for owner in each.kept_by)])
        rows.append((str(each.step), str(each.attempt), old, size(each.num_bytes), ranks, marks or "-", _state(each)))
    print_table(rows, num_right=5)
    if found.verified is not None:
        note = found.verified
        typer.echo(plain(f"last verified: step {note.get('step')} at {note.get('verified_at')}"))


def _state(each: ListedStep) -> str:
    if each.is_committed:
        return "complete" if each.defect is None else f"damaged: {each.defect}"
    if each.world_size is None:
        return "incomplete: no rank has stored its manifest"
    missing = ", ".join(map(str, each.missing_ranks))
    more = each.world_size - each.num_ranks - len(each.missing_ranks)
    return f"incomplete: no manifest of rank {missing}" + (f" and {more} more" if more > 0 else "")


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")
