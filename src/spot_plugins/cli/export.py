"""``spot export``: write the weights of a step in a usual format."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError, SpotError


def export(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    out: Annotated[str, typer.Argument(help="The safetensors file to write. It must not exist.")],
    step: Annotated[
        int | None, typer.Option(help="The step to read.", show_default="the newest committed step")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Read the step that is kept, such as the best one.")] = False,
    part: Annotated[
        str | None, typer.Option(help="The model, such as model-1.", show_default="the only model of the run")
    ] = None,
) -> None:
    """
    Write the weights of a committed step of the run at URL to OUT, with the names that they have in the model.

    Weights that were spread over ranks are whole. Nothing of the checkpoint is run. It needs neither a GPU nor torch.
    """
    from ..resume.weights import export_weights  # not for every verb: it imports the clients of stores

    try:
        weights = export_weights(url, out, step, kept=kept, part=part)
    except SpotError as error:
        typer.echo(f"spot export: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    for name in weights.left_out:
        typer.echo(f"spot export: {name} is no tensor, so it is left out", err=True)
    typer.echo(f"wrote {len(weights.tensors)} tensors of step {weights.step_id.step} to {out}")
