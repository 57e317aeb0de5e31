"""``spot doctor``: examine this machine before a training."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import checks
from .output import errors_of, plain, print_json

if TYPE_CHECKING:
    from ..doctor import Finding

MARKS: Final = {"good": "ok", "warning": "WARNING", "bad": "BAD", "unknown": "?"}


def doctor(
    url: Annotated[str, typer.Argument(envvar="SPOT_URL", help="URL of the run.", show_default=False)],
    launcher: Annotated[
        list[str] | None, typer.Argument(help="The launcher and its options, to be rehearsed.", show_default=False)
    ] = None,
    params: Annotated[str | None, typer.Option(help="Number of parameters, such as 7B.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adam, sgd-momentum or sgd.")] = "adamw",
    dtype: Annotated[str, typer.Option(help="Type of weights and moments: fp32, bf16, fp16 or mixed.")] = "mixed",
    num_bytes: Annotated[str | None, typer.Option("--bytes", help="Size of a checkpoint, instead of --params.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that store a checkpoint, each its share.")] = 1,
    grace_seconds: Annotated[
        float | None, typer.Option(help="Seconds from a notice to the end of the machine.", callback=checks.seconds)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Examine this machine for a training of the run at URL: notices, store, disk, grace period, packages, launcher.

    Each line has a remedy if there is something to do. At most 256 MiB are put to the store and removed again. After
    "--" a launcher is rehearsed: it gets a SIGTERM while it runs a program that waits, for as long as the grace period.
    The exit code is 0 if nothing is bad, 1 otherwise, and 2 for an option that cannot work.

    Example: spot doctor s3://bucket/run-7 --params 7B -- torchrun --nproc-per-node 8
    """
    from ..doctor import Examined, examine  # not for every verb: it imports the clients of stores

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a rehearsed launcher is ended then, as after Ctrl-C
    examined = Examined(
        url=url,
        params=params,
        num_bytes=num_bytes,
        optimizer=optimizer,
        dtype=dtype,
        num_nodes=nodes,
        grace_seconds=grace_seconds,
        launcher=tuple(launcher or ()),
    )
    findings = []
    with errors_of("doctor"):
        for finding in examine(examined):
            findings.append(finding)
            if not as_json:
                _print(finding)
    is_good = not any(each.verdict == "bad" for each in findings)
    if as_json:
        rows = [
            {"check": each.check, "verdict": each.verdict, "text": each.text, "remedy": each.remedy}
            for each in findings
        ]
        print_json({"is_good": is_good, "findings": rows})
    if not is_good:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    typer.echo(f"{MARKS[finding.verdict]:8} {finding.check:14} {plain(finding.text)}")
    if finding.remedy is not None:
        typer.echo(f"{'':23} -> {plain(finding.remedy)}")
