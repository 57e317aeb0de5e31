"""``spot export``: write a step in a usual format."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import errors_of, plain, print_json

if TYPE_CHECKING:
    from ..export.outputs import Exported


class Kind(str, Enum):
    """Format of the output."""

    SAFETENSORS = "safetensors"
    PT = "pt"
    HF = "hf"
    DCP = "dcp"
    LIGHTNING = "lightning"
    ACCELERATE = "accelerate"


def export(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    out: Annotated[str, typer.Argument(help="The file or folder to write. It must not exist.")],
    step: Annotated[
        int | None, typer.Option(help="The step to read.", show_default="the newest committed step")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Read the step that is kept, such as the best one.")] = False,
    kind: Annotated[
        Kind,
        typer.Option(
            "--format",
            help="pt is a file for torch.load, hf a folder for from_pretrained of transformers or PEFT, dcp a "
            "directory for torch.distributed.checkpoint, lightning a .ckpt, accelerate a folder for load_state.",
        ),
    ] = Kind.SAFETENSORS,
    config: Annotated[
        str | None,
        typer.Option(
            help="For hf: the folder with config.json or adapter_config.json, such as that of the base model.",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="The model, such as model-1.", show_default="the only model of the run")
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="The module in the model, such as model.", show_default="the whole model")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Write a committed step of the run at URL to OUT, with the names that the weights have in the model.

    Weights that were spread over ranks are whole. The optimizers are in the formats dcp, lightning and accelerate.
    Nothing of the checkpoint is run. It needs no GPU, and torch for the formats pt, dcp, lightning and accelerate.

    Example: spot export s3://bucket/run-7 final.safetensors
    """
    if (config is None) == (kind is Kind.HF):
        raise typer.BadParameter(
            "--format hf needs --config: a folder with config.json, or with adapter_config.json of PEFT"
            if config is None
            else f"--config belongs to --format hf, and the format is {kind.value}"
        )
    if kind in (Kind.LIGHTNING, Kind.ACCELERATE) and (part is not None or module is not None):
        raise typer.BadParameter(
            f"--part and --module do not belong to --format {kind.value}, which is a whole training"
        )
    choice: dict[str, Any] = {"step": step, "kept": kept, "part": part, "module": module}
    with errors_of("export"):
        found = _export(kind, url, out, config, choice)
    for note in found.notes:
        typer.echo(f"spot export: {plain(note)}", err=True)
    if as_json:
        head = {"step": found.step_id.step, "attempt": found.step_id.attempt, "format": kind.value, "out": out}
        figures = {"num_tensors": found.num_tensors, "num_bytes": found.num_bytes, "notes": found.notes}
        print_json({**head, **figures})
    else:
        typer.echo(f"wrote {found.num_tensors} tensors of step {found.step_id.step} to {out}")


def _export(kind: Kind, url: str, out: str, config: str | None, choice: dict[str, Any]) -> Exported:
    """Write OUT. The imports are not for every verb, because they bring the clients of stores, and some bring torch."""
    if config is not None:
        from ..export.hugging_face import export_hugging_face

        return export_hugging_face(url, out, config, **choice)
    if kind is Kind.DCP:
        from ..export.distributed import export_distributed

        return export_distributed(url, out, **choice)
    if kind is Kind.LIGHTNING:
        from ..export.lightning_file import export_lightning

        return export_lightning(url, out, choice["step"], kept=choice["kept"])
    if kind is Kind.ACCELERATE:
        from ..export.accelerate_folder import export_accelerate

        return export_accelerate(url, out, choice["step"], kept=choice["kept"])
    if kind is Kind.PT:
        from ..export.torch_file import export_torch_weights as export_weights
    else:
        from ..export.safetensors import export_weights
    from ..export.outputs import exported, no_tensors

    weights = export_weights(url, out, **choice)
    return exported(weights, weights.tensors, no_tensors(weights))
