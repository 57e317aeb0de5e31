"""The figures of one benchmark, as a table with the machine, and as JSON and charts on request."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    *("spot_plugins", "torch", "lightning", "accelerate", "safetensors", "s3fs", "obstore"),
    *("torch_checkpointing", "nvidia-resiliency-ext"),
)

# Two-sided 95 % quantiles of Student's t, by degrees of freedom. That of the normal distribution is 1.96.
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
T_95_BEYOND = 2.09  # for more degrees of freedom, where it falls to 1.96


@dataclass(frozen=True)
class Column:
    """One figure of every row."""

    key: str
    title: str
    form: str = ".3f"
    ratio: bool = False
    """True if the figure is also printed as a ratio to the first row, and drawn."""


@dataclass
class Report:
    """The figures of one verb."""

    verb: str
    settings: dict[str, Any]
    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row per way, with ``way`` and the keys of the columns. A figure that makes no sense for a way is None."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Reason for each way that is missing."""
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def fail(self, way, error):
        """Print *error*, and list *way* as failed. The figures of the other ways stay."""
        print(error, flush=True)
        self.not_run[way] = f"failed: {str(error).strip().splitlines()[-1]}"

    def show(self):
        """Print the figures, the ratios to the first row, and what did not run."""
        versions = ", ".join(f"{name} {number}" for name, number in self.machine["versions"].items())
        print(f"\n{self.verb}: {', '.join(f'{name} {value}' for name, value in self.settings.items())}")
        print(f"{self.machine['cpu']}, {self.machine['cores']} cores, load {self.machine['load']}, {versions}")
        self._table([(column.title, lambda row, c=column: _formed(row.get(c.key), c.form)) for column in self.columns])
        compared = [column for column in self.columns if column.ratio]
        if len(self.rows) > 1 and compared:
            first = self.rows[0]
            print(f"\ntimes that of {first['way']}:")
            self._table(
                [(c.title, lambda row, c=c: _formed(_ratio(row.get(c.key), first.get(c.key)), ".2f")) for c in compared]
            )
        for way, reason in self.not_run.items():
            print(f"not run: {way}: {reason}")

    def write(self, folder):
        """Write JSON and a chart into *folder*, named after verb and settings. Return both paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = [
            f"{value}{name}" for name, value in self.settings.items() if name in ("gb", "tensors", "ranks", "device")
        ]
        stem = folder / "-".join([self.verb, *(name.replace("[", "").replace("]", "") for name in named)])
        document = {name: getattr(self, name) for name in ("verb", "settings", "machine", "rows", "not_run")}
        stem.with_name(stem.name + ".json").write_text(json.dumps(document, indent=1) + "\n")
        self._draw(stem.with_name(stem.name + ".png"))
        return [stem.with_name(stem.name + end) for end in (".json", ".png")]

    def _table(self, columns):
        texts = [["way", *(title for title, _ in columns)]]
        texts += [[row["way"], *(form(row) for _, form in columns)] for row in self.rows]
        widths = [max(len(line[index]) for line in texts) for index in range(len(texts[0]))]
        for line in texts:
            cells = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
            print("  ".join([line[0].ljust(widths[0]), *cells]))

    def _draw(self, path):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        drawn = [column for column in self.columns if column.ratio] or self.columns
        height = 1.2 + 0.32 * len(self.rows)
        figure, axes = pyplot.subplots(1, len(drawn), figsize=(4 + 3 * len(drawn), height), sharey=True, squeeze=False)
        names = [row["way"] for row in self.rows]
        for axis, column in zip(axes[0], drawn, strict=True):
            values = [row.get(column.key) or 0.0 for row in self.rows]
            colors = ["tab:green" if name.startswith("spot_plugins") else "tab:gray" for name in names]
            axis.barh(range(len(names)), values, color=colors)
            axis.set_title(column.title, fontsize=9)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
        axes[0][0].invert_yaxis()
        figure.suptitle(f"{self.verb}, " + ", ".join(f"{k} {v}" for k, v in self.settings.items()), fontsize=9)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def mean_and_interval(values):
    """Return the mean of *values* and half of its 95 % confidence interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    degrees = len(values) - 1
    t = T_95[degrees - 1] if degrees <= len(T_95) else T_95_BEYOND
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def machine():
    """Return the hardware and the software versions, on which the figures depend."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
    }


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _ratio(value, base):
    return None if value is None or not base else value / base


def _formed(value, form):
    return "-" if value is None else format(value, form)
