"""The metrics of one rank by their names, counted from its events, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__, events
from ..clock import wall_time
from ..config import printable_url
from ..eventlog.watchers import Watched
from ..events import Event
from .cadence import Cadence
from .tally import Tally

STALL_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
TIME_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
MARGIN_BUCKETS: Final = (-30, -10, -3, 0, 1, 3, 10, 30, 100, 300)

GAUGES: Final = {
    "spot_step": "Last optimizer step that is done",
    "spot_committed_step": "Newest step that is stored: on rank 0 by all ranks, on others by this rank",
    "spot_last_commit_timestamp_seconds": "Time of the newest commit of this attempt, 0 before the first",
    "spot_last_verify_timestamp_seconds": "Time of the last good `spot verify`, 0 if there was none. Rank 0 only",
    "spot_training_began_timestamp_seconds": "Time at which this attempt began to train, 0 before",
    "spot_save_interval_seconds": "Expected seconds from one save to the next, 0 while unknown",
    "spot_notice_deadline_timestamp_seconds": "Time at which the machine will be taken, 0 without a notice",
}
COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "spot_staged_bytes_total": ("Bytes copied to host memory", ()),
    "spot_pushed_bytes_total": ("Bytes stored", ()),
    "spot_skipped_bytes_total": ("Bytes neither copied nor stored, because an earlier step has stored them", ()),
    "spot_saves_total": ("Saves by their reason", ("trigger",)),
    "spot_saves_deferred_total": ("Times that a save which was due waited for an earlier one", ()),
    "spot_saves_abandoned_total": ("Saves that will never be stored", ()),
    "spot_push_failures_total": ("Failed tries to store a save", ()),
    "spot_notices_total": ("Notices that the machine will be taken", ("source", "kind")),
    "spot_resumes_total": ("Resumes: restored, rejected (an older step was tried), failed", ("result",)),
}
HISTOGRAMS: Final[dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]]] = {
    "spot_stall_seconds": ("Time that training stood still for a save", (), STALL_BUCKETS),
    "spot_stage_seconds": ("Time until a save was copied to host memory", (), TIME_BUCKETS),
    "spot_local_write_seconds": ("Time to write a save to the local disk", (), TIME_BUCKETS),
    "spot_push_seconds": ("Time from the copy of a save to its commit", (), TIME_BUCKETS),
    "spot_commit_margin_seconds": ("Time left before the deadline when this rank left", (), MARGIN_BUCKETS),
    "spot_resume_seconds": ("Time of a start by phase: program, load, salvage", ("phase",), TIME_BUCKETS),
}
OF_THE_RUN: Final = {
    "spot_run_began_timestamp_seconds": "Begin of the first attempt of the run. Rank 0 only",
    "spot_goodput_ratio": "Share of the paid time that became kept steps, of the whole run so far. Rank 0 only",
    "spot_badput_seconds_total": "Paid seconds that became no kept steps, of the whole run. Rank 0 only",
    "spot_lost_steps_total": "Steps trained in vain, of the whole run. Rank 0 only",
    "spot_interruptions_total": "Attempts that were told to leave or killed, of the whole run. Rank 0 only",
}
INFO: Final = "spot_run_info"
NAMES: Final = frozenset({INFO, *GAUGES, *COUNTERS, *HISTOGRAMS, *OF_THE_RUN})
"""All names. Each has the labels ``run`` and ``rank``."""

_READ: Final = {"spot_step", "spot_save_interval_seconds"}
"""Gauges that are read from the session whenever they are collected."""
_TRIGGERS: Final = ("steps", "seconds", "soft", "notice", "explicit", "end", "pause")


class Instruments(Collector):
    """
    The metrics of one rank, as a collector. They count on while the process lives, also over several sessions.

    Counters begin at 0 with all known labels, because Prometheus sees no increase in a series that begins with 1.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._info = Info(INFO.removesuffix("_info"), "The run", registry=self._registry)
        self._gauges = {name: Gauge(name, text, registry=self._registry) for name, text in GAUGES.items()}
        self._counters = {
            name: Counter(name, text, labels, registry=self._registry) for name, (text, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(name, text, labels, registry=self._registry, buckets=buckets)
            for name, (text, labels, buckets) in HISTOGRAMS.items()
        }
        for trigger in _TRIGGERS:
            self._counters["spot_saves_total"].labels(trigger)
        for result in ("restored", "rejected", "failed"):
            self._counters["spot_resumes_total"].labels(result)
        self._facts: dict[str, str] = {"provider": "", "version": __version__}
        self._labels: dict[str, str] = {}
        self._tally: Tally | None = None
        self._counts_shares = False
        self._step: Callable[[], int | None] = lambda: 0
        self._interval_s: Callable[[], float] = lambda: 0.0
        self._gauges["spot_step"].set_function(lambda: self._step() or 0)
        self._gauges["spot_save_interval_seconds"].set_function(lambda: self._interval_s())

    def open(self, watched: Watched, tally: Tally | None, cadence: Cadence) -> None:
        """Begin with a session. *tally* has the figures of the run, on rank 0."""
        self._labels = {"run": printable_url(watched.config.url), "rank": str(watched.rank)}
        self._tally = tally
        self._counts_shares = watched.rank == 0 < watched.world_size - 1
        self._describe(run=self._labels["run"], attempt=watched.attempt, world_size=watched.world_size)
        for name in self._gauges.keys() - _READ:
            self._gauges[name].set(0)
        self._step, self._interval_s = watched.reached, cadence.interval_s
        self._observe_start("program", watched.process_s)

    def begin(self) -> None:
        """Take note that training begins."""
        self._gauges["spot_training_began_timestamp_seconds"].set_to_current_time()

    def close(self) -> None:
        """Let go of the session, which holds memory. What it has counted stays."""
        step, interval_s = self._step(), self._interval_s()
        self._step, self._interval_s = lambda: step, lambda: interval_s
        self._tally = None

    def set(self, name: str, value: float) -> None:
        """Set the gauge *name*."""
        self._gauges[name].set(value)

    def fail_to_resume(self) -> None:
        """Count a session that failed before training began."""
        self._counters["spot_resumes_total"].labels("failed").inc()

    def on_event(self, event: Event) -> None:
        """Count *event*. It takes microseconds, and no thread waits for another one in it."""
        self._on_save(event)
        self._on_commit(event)
        self._on_resume(event)
        match event:
            case events.NoticeReceived(source=source, kind=kind):
                self._counters["spot_notices_total"].labels(source, kind).inc()
                if event.grace_s is not None:
                    self._gauges["spot_notice_deadline_timestamp_seconds"].set(wall_time() + event.grace_s)
            case events.NoticeSourcesFound(providers=providers):
                self._describe(provider=",".join(providers))
            case events.Leaving(left_s=left_s):
                self._histograms["spot_commit_margin_seconds"].observe(left_s)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, with the labels of the rank. Times of creation, which double the page, are left out."""
        for metric in (*self._registry.collect(), *self._of_the_run()):
            metric.samples = [
                sample._replace(labels={**self._labels, **sample.labels})
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ]
            yield metric

    def _on_save(self, event: Event) -> None:
        match event:
            case events.Staged(trigger=trigger, num_bytes=num_bytes):
                self._counters["spot_saves_total"].labels(trigger).inc()
                self._counters["spot_staged_bytes_total"].inc(num_bytes)
                self._counters["spot_skipped_bytes_total"].inc(event.num_skipped_bytes)
                self._histograms["spot_stall_seconds"].observe(event.stall_s)
                self._histograms["spot_stage_seconds"].observe(event.copy_s)
            case events.SaveDeferred():
                self._counters["spot_saves_deferred_total"].inc()
            case events.SaveAbandoned():
                self._counters["spot_saves_abandoned_total"].inc()
            case events.PushFailing():
                self._counters["spot_push_failures_total"].inc()
            case events.WrittenLocally(write_s=write_s):
                self._histograms["spot_local_write_seconds"].observe(write_s)

    def _on_commit(self, event: Event) -> None:
        match event:
            case events.Committed(step=step, num_bytes=num_bytes):
                self._counters["spot_pushed_bytes_total"].inc(num_bytes)
                self._histograms["spot_push_seconds"].observe(event.push_s)
                if not self._counts_shares:
                    self._commit(step)
            case events.SharesCounted(visible_step=int(step)):
                self._commit(step)

    def _on_resume(self, event: Event) -> None:
        match event:
            case events.Resumed(step=step, load_s=load_s):
                self._counters["spot_resumes_total"].labels("restored").inc()
                self._observe_start("load", load_s)
                self._gauges["spot_committed_step"].set(step)
            case events.Salvaged(push_s=push_s):
                self._observe_start("salvage", push_s)
            case events.CheckpointRejected():
                self._counters["spot_resumes_total"].labels("rejected").inc()

    def _commit(self, step: int) -> None:
        self._gauges["spot_committed_step"].set(step)
        self._gauges["spot_last_commit_timestamp_seconds"].set_to_current_time()

    def _observe_start(self, phase: str, seconds: float | None) -> None:
        if seconds is not None:
            self._histograms["spot_resume_seconds"].labels(phase).observe(seconds)

    def _describe(self, **facts: Any) -> None:
        self._facts |= {name: str(value) for name, value in facts.items()}
        self._info.info(self._facts)

    def _of_the_run(self) -> Iterable[Metric]:
        figures = None if self._tally is None else self._tally.figures()
        if figures is None:
            return
        values = {
            "spot_run_began_timestamp_seconds": figures.began_at,
            "spot_goodput_ratio": figures.goodput,
            "spot_lost_steps_total": figures.lost_steps,
            "spot_interruptions_total": figures.num_interruptions,
        }
        for name, value in values.items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, OF_THE_RUN[name], value=value)
        badput = CounterMetricFamily(
            "spot_badput_seconds_total", OF_THE_RUN["spot_badput_seconds_total"], None, ["reason"]
        )
        for reason, seconds in figures.seconds.items():
            if reason != "productive":
                badput.add_metric([reason], seconds)
        yield badput
