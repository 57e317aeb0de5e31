"""``spot plan``: compute what spot machines mean for a training, before or while it runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, SpotError

if TYPE_CHECKING:
    from ..economics.planning import Plan

Text = str | None
Number = float | None
Params = Annotated[Text, typer.Option(help="Number of parameters, such as 7B. All of them are trained.")]
Optimizer = Annotated[str, typer.Option(help="adamw, adam, sgd-momentum or sgd.")]
Dtype = Annotated[
    str, typer.Option(help="Type of the weights and moments: fp32, bf16, fp16, or mixed, which keeps fp32.")
]
Bytes = Annotated[Text, typer.Option(help="Size of a checkpoint, such as 80GB, instead of --params.")]
Gpus = Annotated[int, typer.Option(help="GPUs of all nodes together.")]
Nodes = Annotated[int, typer.Option(help="Machines, any of which may be taken.")]
StepSeconds = Annotated[Number, typer.Option(help="Seconds of an optimizer step.")]
StallSeconds = Annotated[Number, typer.Option(help="Seconds that training stands still for a save.")]
RestartSeconds = Annotated[Number, typer.Option(help="Seconds from a preemption until training continues.")]
UploadGbps = Annotated[Number, typer.Option(help="Gigabits per second from one node to the store.")]
DiskGbps = Annotated[Number, typer.Option(help="Gigabits per second from one node to its local disk.")]
Measure = Annotated[Text, typer.Option(help="URL of a run: measure both speeds, with at most 256 MiB and 10 s each.")]
Grace = Annotated[Number, typer.Option(help="Seconds from a notice to the end of the machine.")]
PerDay = Annotated[Text, typer.Option(help="Share of the machines that is taken within a day, such as 8%.")]
PerMonth = Annotated[Text, typer.Option(help="Share within 30 days, as providers publish it.")]
Trace = Annotated[Text, typer.Option(help="CSV file with the leases of a fleet.")]
Run = Annotated[Text, typer.Option(help="URL of a run: take the rate from its own attempts.")]
Preempted = Annotated[int | None, typer.Option(help="Preemptions that were counted, in --machine-hours.")]
MachineHours = Annotated[Number, typer.Option(help="Hours of all machines in which they were counted.")]
Crashes = Annotated[Number, typer.Option(help="Crashes per day that leave the machine. For saves to two levels.")]
SpotPrice = Annotated[Number, typer.Option(help="Price of a GPU hour on spot, in any currency.")]
OnDemandPrice = Annotated[Number, typer.Option(help="Price of a GPU hour on demand, in the same currency.")]
TrainHours = Annotated[Number, typer.Option(help="Hours that the training takes without preemptions.")]
DeadlineHours = Annotated[Number, typer.Option(help="Hours until the training must have ended.")]
EffortCost = Annotated[Number, typer.Option(help="Money for making the training fit for spot.")]
Next = Annotated[
    bool, typer.Option("--next", help="Print only spot, on-demand or wait, for the next attempt of --run.")
]
Png = Annotated[Text, typer.Option(help="File for a picture of the simulated runs. It needs matplotlib.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]


def plan(
    params: Params = None,
    optimizer: Optimizer = "adamw",
    dtype: Dtype = "mixed",
    bytes: Bytes = None,  # the name of the option
    gpus: Gpus = 1,
    nodes: Nodes = 1,
    step_seconds: StepSeconds = None,
    stall_seconds: StallSeconds = None,
    restart_seconds: RestartSeconds = None,
    upload_gbps: UploadGbps = None,
    disk_gbps: DiskGbps = None,
    measure: Measure = None,
    grace: Grace = None,
    rate_per_day: PerDay = None,
    rate_per_month: PerMonth = None,
    trace: Trace = None,
    run: Run = None,
    preemptions: Preempted = None,
    machine_hours: MachineHours = None,
    crashes_per_day: Crashes = None,
    spot_price: SpotPrice = None,
    on_demand_price: OnDemandPrice = None,
    train_hours: TrainHours = None,
    deadline_hours: DeadlineHours = None,
    effort_cost: EffortCost = None,
    next_: Next = False,
    png: Png = None,
    json: Json = False,
) -> None:
    """
    Compute the best interval between saves, what fits into the grace, the time on spot machines and what it saves.

    Each figure has its unit and its basis. Prices are yours, because none is built in. The exit code is 0 if there is
    an answer, 1 if a store does not answer, and 2 for an option that cannot work.

    Example: spot plan --params 7B --gpus 8 --rate-per-month 20% --grace 120 --train-hours 200
    """
    given = dict(locals())
    for name in ("measure", "next_", "png", "json"):
        del given[name]
    try:
        text = _answer(given, measure, only_next=next_, png=png, as_json=json)
    except SpotError as error:
        typer.echo(f"spot plan: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    typer.echo(text)


def _answer(given: dict[str, Any], measure: str | None, *, only_next: bool, png: str | None, as_json: bool) -> str:
    from ..economics.inputs import Options, inputs_of  # not for every verb, also the next ones
    from ..economics.page import next_to_json, to_json, to_text
    from ..economics.planning import make_plan, next_machines

    options = Options(**given)
    upload = disk = own = None
    if only_next and options.run is None:
        raise ConfigError("next says nothing without run: give the URL of the run that is to be started again")
    if options.run is not None:
        from ..economics.own_rate import run_preemptions

        own = run_preemptions(options.run)
    if measure is not None:
        from ..economics.link_speed import measure_disk, measure_store

        if options.upload_gbps is not None:
            raise ConfigError(f"measure={measure!r} and upload_gbps exclude each other: give only one of them")
        upload = measure_store(measure)
        disk = measure_disk() if options.disk_gbps is None else None
    inputs = inputs_of(options, upload, disk, own)
    if only_next:
        decision = next_machines(inputs)
        if as_json:
            return next_to_json(decision)
        typer.echo(f"spot plan: {decision.choice}, because {decision.reason}", err=True)
        return decision.choice
    made = make_plan(inputs)
    if png is not None:
        _draw(made, png)
    return to_json(made) if as_json else to_text(made)


def _draw(made: Plan, png: str) -> None:
    """Draw the simulated runs into the file *png*. Raise :exc:`.ConfigError` if that cannot be done."""
    if made.wall is None or made.wall.num_runs == 0:
        raise ConfigError(f"png={png!r} has no simulated runs to show: give train_hours, and a rate of preemptions")
    if find_spec("matplotlib") is None:
        raise ConfigError(f"png={png!r} needs matplotlib: pip install matplotlib")
    from ..economics.picture import draw

    try:
        draw(made, made.wall, Path(png))
    except OSError as error:
        raise ConfigError(f"png={png!r} cannot be written: {error.strerror}") from error
