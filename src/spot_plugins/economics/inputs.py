"""Input of a plan: the options of ``spot plan``, checked, with an estimate and its basis for what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError
from ..schedule.auto import PRIOR_MEAN_S, Preemptions
from . import quantities
from .goodput import Lease
from .rates import HOURS_PER_DAY, HOURS_PER_MONTH, Rate, counted_rate, mean_s, rate_of_share
from .sizes import MOMENTS, WEIGHT_BYTES, checkpoint_bytes
from .traces import read_trace

BYTES_PER_GBIT: Final = 1e9 / 8

ASSUMED_UPLOAD_GBPS: Final = 4.0
ASSUMED_COPY_BYTES_PER_S: Final = 10e9
ASSUMED_STEP_S: Final = 5.0
ASSUMED_START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of the input, and where it comes from."""

    value: float
    basis: str
    """Source of the number: ``given``, measured, or an assumption in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of ``spot plan``, as given. None stands for an option that is missing."""

    params: str | None = None
    optimizer: str = "adamw"
    dtype: str = "mixed"
    bytes: str | None = None
    gpus: int = 1
    nodes: int = 1
    step_seconds: float | None = None
    stall_seconds: float | None = None
    restart_seconds: float | None = None
    upload_gbps: float | None = None
    disk_gbps: float | None = None
    grace: float | None = None
    rate_per_day: str | None = None
    rate_per_month: str | None = None
    trace: str | None = None
    run: str | None = None
    preemptions: int | None = None
    machine_hours: float | None = None
    crashes_per_day: float | None = None
    spot_price: float | None = None
    on_demand_price: float | None = None
    train_hours: float | None = None
    deadline_hours: float | None = None
    effort_cost: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All numbers of a plan that are not computed, in seconds, bytes and the user's currency."""

    checkpoint_bytes: Figure
    gpus: int
    nodes: int
    step_s: Figure
    stall_s: Figure
    restart_s: Figure
    upload_bytes_per_s: Figure
    """Speed of one machine to the store."""
    disk_bytes_per_s: Figure | None
    """Speed of one machine to its local disk."""
    rate: Rate
    rate_basis: str
    leases: tuple[Lease, ...]
    """Leases of the trace. Empty without one, and if none was preempted."""
    grace_s: float | None
    crashes_per_day: float | None
    spot_price: float | None
    on_demand_price: float | None
    train_hours: float | None
    deadline_hours: float | None
    effort_cost: float | None

    @property
    def planned_per_hour(self) -> float:
        """Preemptions per machine hour for which is planned: the upper limit if none was counted, else the estimate."""
        return self.rate.per_hour or self.rate.high_per_hour or 0.0

    @property
    def mean_s(self) -> float:
        """Mean seconds between preemptions of the job for which is planned. Infinity if there are none."""
        return mean_s(self.planned_per_hour, self.nodes)

    @property
    def share_bytes(self) -> float:
        """Bytes that each machine stores of a checkpoint."""
        return self.checkpoint_bytes.value / self.nodes

    @property
    def push_s(self) -> float:
        """Seconds to store a checkpoint, with all machines at once."""
        return self.share_bytes / self.upload_bytes_per_s.value


def inputs_of(
    options: Options,
    upload: Figure | None = None,
    disk: Figure | None = None,
    own: Preemptions | None = None,
) -> Inputs:
    """
    Check the *options*, and estimate what is missing.

    Args:
        options: The options.
        upload: Measured speed to the store in bytes per second. None: the option, or an assumption.
        disk: Measured speed of the local disk in bytes per second. None: the option, or none.
        own: The preemptions of the run of the option *run*.

    Raises:
        ConfigError: An option cannot work, or one without an estimate is missing.
    """
    _check_numbers(options)
    size = checkpoint_of(options)
    if upload is None:
        upload = _given(options.upload_gbps, ASSUMED_UPLOAD_GBPS, "assumed; measure it with --measure URL")
        upload = Figure(upload.value * BYTES_PER_GBIT, upload.basis)
    if disk is None and options.disk_gbps is not None:
        disk = Figure(options.disk_gbps * BYTES_PER_GBIT, "given")
    if disk is None and options.crashes_per_day is not None:
        raise _needs(options, "crashes_per_day", "disk_gbps")
    copy_s = size.value / options.gpus / ASSUMED_COPY_BYTES_PER_S
    read_s = size.value / options.nodes / upload.value
    rate, rate_basis, leases = _rate(options, own)
    return Inputs(
        checkpoint_bytes=size,
        gpus=options.gpus,
        nodes=options.nodes,
        step_s=_given(options.step_seconds, ASSUMED_STEP_S, "assumed; give --step-seconds"),
        stall_s=_given(options.stall_seconds, copy_s, "estimated: a copy of its share by each GPU, at 10 GB/s"),
        restart_s=_given(
            options.restart_seconds,
            ASSUMED_START_S + read_s,
            f"estimated: {ASSUMED_START_S:g} s of start, and a read as fast as the upload",
        ),
        upload_bytes_per_s=upload,
        disk_bytes_per_s=disk,
        rate=rate,
        rate_basis=rate_basis,
        leases=leases,
        grace_s=options.grace,
        crashes_per_day=options.crashes_per_day,
        spot_price=options.spot_price,
        on_demand_price=options.on_demand_price,
        train_hours=options.train_hours,
        deadline_hours=options.deadline_hours,
        effort_cost=options.effort_cost,
    )


_AT_LEAST_0: Final = {
    *("stall_seconds", "restart_seconds", "grace", "crashes_per_day", "spot_price", "effort_cost", "preemptions"),
}
_ABOVE_0: Final = {
    *("gpus", "nodes", "step_seconds", "upload_gbps", "disk_gbps", "machine_hours", "on_demand_price", "train_hours"),
    "deadline_hours",
}


_MOST: Final = 1e7
"""Most of anything. The exact interval of a larger count would take minutes."""

_NEEDS: Final = {
    "deadline_hours": ("train_hours",),
    "machine_hours": ("preemptions",),
    "preemptions": ("machine_hours",),
    "spot_price": ("on_demand_price",),
    "on_demand_price": ("spot_price",),
    "effort_cost": ("spot_price", "on_demand_price"),
}
"""Options that say nothing without others."""


def checkpoint_of(options: Options) -> Figure:
    """
    Return the bytes of a checkpoint of the *options*.

    Raises:
        ConfigError: Not exactly one of *params* and *bytes* is given, or one of the options cannot work.
    """
    if _one_of(options, "params", "bytes") == "bytes":
        return Figure(quantities.num_bytes("bytes", str(options.bytes)), "given")
    for name, value, known in (("optimizer", options.optimizer, MOMENTS), ("dtype", options.dtype, WEIGHT_BYTES)):
        if value not in known:
            raise ConfigError(f"{name}={value!r} is not known here: give one of {', '.join(known)}, or give bytes")
    params = quantities.parameters("params", str(options.params))
    weight, moments = WEIGHT_BYTES[options.dtype], MOMENTS[options.optimizer]
    rule = f"estimated: {params / 1e9:g} B parameters x {weight} bytes x (1 weight + {moments} of {options.optimizer})"
    return Figure(checkpoint_bytes(params, options.optimizer, options.dtype), rule)


def _check_numbers(options: Options) -> None:
    for name in sorted(_AT_LEAST_0 | _ABOVE_0):
        value = getattr(options, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and name in _ABOVE_0):
            limit = "above 0" if name in _ABOVE_0 else "at least 0"
            raise ConfigError(f"{name}={value} must be a finite number {limit}")
        if value > _MOST:
            raise ConfigError(f"{name}={value} is more than can be planned for: give at most {_MOST:g}")
    if options.gpus < options.nodes:
        raise ConfigError(
            f"gpus={options.gpus} is less than nodes={options.nodes}: give the number of GPUs of all nodes together"
        )
    for name, others in _NEEDS.items():
        missing = [other for other in others if getattr(options, other) is None]
        if getattr(options, name) is not None and missing:
            raise _needs(options, name, missing[0])


def _needs(options: Options, name: str, other: str) -> ConfigError:
    return ConfigError(f"{name}={getattr(options, name)} says nothing without {other}: give {other} as well")


def _rate(options: Options, own: Preemptions | None) -> tuple[Rate, str, tuple[Lease, ...]]:
    match _one_of(options, "rate_per_day", "rate_per_month", "trace", "run", "preemptions"):
        case "rate_per_day":
            share = quantities.share("rate_per_day", str(options.rate_per_day))
            return rate_of_share(share, HOURS_PER_DAY), f"given: {share:.3g} of the machines within a day", ()
        case "rate_per_month":
            share = quantities.share("rate_per_month", str(options.rate_per_month))
            return rate_of_share(share, HOURS_PER_MONTH), f"given: {share:.3g} of the machines within 30 days", ()
        case "trace":
            trace = read_trace(str(options.trace))
            basis = f"trace: {_times(trace.num_preemptions)} in {trace.machine_hours:,.0f} machine hours"
            return (
                counted_rate(trace.num_preemptions, trace.machine_hours),
                basis,
                trace.leases if trace.num_preemptions else (),
            )
        case "run":
            if own is None or not own.within_s:
                mean_h = PRIOR_MEAN_S / 3600
                basis = f"assumed: the job once in {mean_h:g} h, because the run has no attempt that could be counted"
                return Rate(1 / mean_h / options.nodes), basis, ()
            hours = own.within_s / 3600
            basis = f"the run's own: {_times(own.num_seen)} of the job in {hours:.3g} h"
            return counted_rate(own.num_seen, hours * options.nodes), basis, ()
        case _:
            count, machine_hours = options.preemptions or 0, options.machine_hours or 0.0
            return counted_rate(count, machine_hours), f"given: {_times(count)} in {machine_hours:,g} machine hours", ()


def _times(count: int) -> str:
    return f"{count:,} preemption{'' if count == 1 else 's'}"


def _one_of(options: Options, *names: str) -> str:
    """Return which one of *names* is given. Raise :exc:`ConfigError` if it is none or several."""
    given = [name for name in names if getattr(options, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} exclude each other" if given else "something is missing"
        raise ConfigError(f"{found}: give exactly one of {', '.join(names)}")
    return given[0]


def _given(value: float | None, assumed: float, basis: str) -> Figure:
    return Figure(assumed, basis) if value is None else Figure(value, "given")
