"""``spot export``: write the weights of a step in a usual format."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from .output import errors_of


class Kind(str, Enum):
    """Format of the exported file."""

    SAFETENSORS = "safetensors"
    PT = "pt"


def export(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    out: Annotated[str, typer.Argument(help="The file to write. It must not exist.")],
    step: Annotated[
        int | None, typer.Option(help="The step to read.", show_default="the newest committed step")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Read the step that is kept, such as the best one.")] = False,
    kind: Annotated[
        Kind,
        typer.Option(
            "--format", help="The format of the file. pt is read by torch.load, needs torch, and holds all in memory."
        ),
    ] = Kind.SAFETENSORS,
    part: Annotated[
        str | None, typer.Option(help="The model, such as model-1.", show_default="the only model of the run")
    ] = None,
) -> None:
    """
    Write the weights of a committed step of the run at URL to OUT, with the names that they have in the model.

    Weights that were spread over ranks are whole. Nothing of the checkpoint is run. It needs no GPU, and torch for
    ``--format pt`` alone.

    Example: spot export s3://bucket/run-7 final.safetensors
    """
    # The imports are not for every verb, because they bring the clients of stores.
    with errors_of("export"):
        if kind is Kind.PT:
            from ..resume.tensors import export_torch_weights as export_weights
        else:
            from ..resume.weights import export_weights
        weights = export_weights(url, out, step, kept=kept, part=part)
    for name in weights.left_out:
        typer.echo(f"spot export: {name} is no tensor, so it is left out", err=True)
    typer.echo(f"wrote {len(weights.tensors)} tensors of step {weights.step_id.step} to {out}")
