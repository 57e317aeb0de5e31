"""
The resume in the middle of an epoch of a plain ``DataLoader``, by fetching batches again and by passing over them.

The data set makes a sample of 16 numbers from its index, so it costs as little as one can. *Position* is the time from
the begin of the epoch until the iterator stands at the position, *first batch* until it has yielded one more batch.
"""

from __future__ import annotations

import logging
import time
import warnings

import torch
from torch.utils.data import DataLoader, Dataset

from spot_plugins.data import LoaderPosition

from .report import Column, Report

BATCH_SIZE = 32
COLUMNS = [
    Column("position_s", "position s", ".2f", ratio=True),
    Column("first_batch_s", "first batch s", ".2f", ratio=True),
    Column("cpu_s", "CPU s", ".2f"),
]


class Cheap(Dataset):
    """Samples that depend on their index alone."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.full((16,), float(index))


def add_arguments(parser):
    parser.add_argument("--batches", type=int, default=50_000, help="batches of 32 samples before the position")


def run(arguments):
    logging.getLogger("spot_plugins").setLevel(logging.ERROR)
    report = Report("position", {"batches": arguments.batches}, COLUMNS)
    for way, workers in (("skip", 0), ("skip", 2), ("fetch", 0), ("fetch", 2)):
        report.rows.append({"way": f"{way}, {workers} workers", **measure(way, workers, arguments.batches)})
    return report


def measure(way, workers, batches):
    """Bring a new loader to the position of another one, which has trained on *batches*."""
    position, _ = begin(workers, batches, "auto")
    position.begin_epoch(0)
    state = position.state_dict(batches)
    position, loader = begin(workers, batches, way)
    position.load_state_dict(state)
    started, before = time.perf_counter(), time.process_time()
    position.begin_epoch(0)
    iterator = iter(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        position.fast_forward(iterator)
    reached = time.perf_counter()
    next(iterator)
    row = {"position_s": reached - started, "first_batch_s": time.perf_counter() - started}
    return row | {"cpu_s": time.process_time() - before}


def begin(workers, batches, way):
    loader = DataLoader(Cheap((batches + 1000) * BATCH_SIZE), batch_size=BATCH_SIZE, shuffle=True, num_workers=workers)
    return LoaderPosition(loader, 1, fast_forward=way), loader
