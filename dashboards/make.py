"""
Makes dashboards/grafana.json: ``python dashboards/make.py``. It needs Python 3.11 and grafana-foundation-sdk.

A test compares the file in the repository with what this script makes.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Series
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FILE = Path(__file__).parent / "grafana.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
RUN = 'run=~"$run"'
FIRST = 'run=~"$run", rank="0"'

# Title, unit, expression.
FIGURES = [
    ("Step", "short", f"max(spot_step{{{RUN}}})"),
    ("Stored step", "short", f"max(spot_committed_step{{{FIRST}}})"),
    ("Not stored for", "s", f"time() - max(spot_last_commit_timestamp_seconds{{{FIRST}}} > 0)"),
    ("Goodput of the run", "percentunit", f"max(spot_goodput_ratio{{{FIRST}}})"),
    ("Lost steps", "short", f"max(spot_lost_steps_total{{{FIRST}}})"),
    ("Saves waiting", "short", f"max(increase(spot_saves_deferred_total{{{RUN}}}[10m]))"),
    ("Interruptions", "short", f"max(spot_interruptions_total{{{FIRST}}})"),
    ("Last verified", "dateTimeFromNow", f"1000 * max(spot_last_verify_timestamp_seconds{{{FIRST}}} > 0)"),
]
# Title, unit, and pairs of expression and legend.
CURVES = {
    "Training": [
        ("Steps per second", "ops", [(f"deriv(spot_step{{{RUN}}}[5m])", "rank {{rank}}")]),
        (
            "Paid time that became no steps",
            "percentunit",
            [(f"rate(spot_badput_seconds_total{{{FIRST}}}[$__rate_interval])", "{{reason}}")],
        ),
        (
            "Time standing still for saves",
            "percentunit",
            [(f"rate(spot_stall_seconds_sum{{{RUN}}}[$__rate_interval])", "rank {{rank}}")],
        ),
        ("Notices", "short", [(f"sum by (source, kind) (spot_notices_total{{{RUN}}})", "{{source}} {{kind}}")]),
    ],
    "Saves": [
        (
            "Time of a save, mean",
            "s",
            [
                (f"rate(spot_{phase}_seconds_sum{{{RUN}}}[1h]) / rate(spot_{phase}_seconds_count{{{RUN}}}[1h])", legend)
                for phase, legend in (
                    ("stall", "standing still, rank {{rank}}"),
                    ("stage", "copy, rank {{rank}}"),
                    ("local_write", "local disk, rank {{rank}}"),
                    ("push", "store, rank {{rank}}"),
                )
            ],
        ),
        (
            "Bytes",
            "Bps",
            [
                (f"rate(spot_staged_bytes_total{{{RUN}}}[1h])", "copied, rank {{rank}}"),
                (f"rate(spot_pushed_bytes_total{{{RUN}}}[1h])", "stored, rank {{rank}}"),
                (f"rate(spot_skipped_bytes_total{{{RUN}}}[1h])", "stored before, rank {{rank}}"),
            ],
        ),
        ("Saves by reason", "short", [(f"increase(spot_saves_total{{{FIRST}}}[1h]) > 0", "{{trigger}}")]),
        (
            "Trouble",
            "short",
            [
                (f"increase(spot_push_failures_total{{{RUN}}}[5m])", "failed pushes, rank {{rank}}"),
                (f"increase(spot_saves_deferred_total{{{RUN}}}[5m])", "deferred, rank {{rank}}"),
                (f"increase(spot_saves_abandoned_total{{{RUN}}}[5m])", "abandoned, rank {{rank}}"),
            ],
        ),
    ],
    "Starts and ends": [
        (
            "Time of a start, mean",
            "s",
            [(f"spot_resume_seconds_sum{{{RUN}}} / spot_resume_seconds_count{{{RUN}}}", "{{phase}}, rank {{rank}}")],
        ),
        ("Resumes of this attempt", "short", [(f"spot_resumes_total{{{FIRST}}}", "{{result}}")]),
        (
            "Seconds from the notice to the end",
            "s",
            [(f"spot_notice_deadline_timestamp_seconds{{{RUN}}} - time() > 0", "rank {{rank}}")],
        ),
    ],
    "Prices": [
        (
            "Cheapest offer per GPU and hour",
            "currencyUSD",
            [
                ("min by (gpu, kind, provider) (spot_offer_dollars_per_gpu_hour)", "{{gpu}} {{kind}} {{provider}}"),
                ("spot_offer_limit_dollars_per_gpu_hour", "limit {{gpu}}"),
            ],
        ),
    ],
}


def dashboard() -> str:
    """Return the dashboard as Grafana imports it."""
    numbers = count(1)
    made = (
        Dashboard("Training on spot machines")
        .uid("spot-plugins")
        .tags(["spot_plugins"])
        .description("Metrics of spot_plugins: what is stored, what is lost, and what saves cost.")
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("run")
            .label("Run")
            .datasource(SOURCE)
            .query("label_values(spot_run_info, run)")
            .multi(False)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        .with_row(Row("Now").id(next(numbers)))
    )
    for title, unit, expression in FIGURES:
        made.with_panel(
            Stat()
            .id(next(numbers))
            .title(title)
            .unit(unit)
            .datasource(SOURCE)
            .span(6)
            .height(4)
            .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
            .with_target(Dataquery().expr(expression).instant().datasource(SOURCE))
        )
    for row, panels in CURVES.items():
        made.with_row(Row(row).id(next(numbers)))
        for title, unit, targets in panels:
            panel = Series().id(next(numbers)).title(title).unit(unit).datasource(SOURCE).span(12).height(8).min(0)
            for number, (expression, legend) in enumerate(targets):
                panel.with_target(
                    Dataquery().expr(expression).legend_format(legend).ref_id("ABCD"[number]).datasource(SOURCE)
                )
            made.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(dashboard())
