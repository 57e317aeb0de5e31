"""
The time until a save is durable on the local disk and in S3, beside the same bytes without a checkpoint.

*Local* is the time from the request to the last byte on disk, beside a raw write of as many bytes with O_DIRECT and
fdatasync. *Committed* is the time from there to the commit in a real S3 server on this machine, beside bare clients
that put as many bytes to the same server. Training stands still meanwhile. The ways take turns. Figures are medians.
On several ranks, all save at once and the slowest rank counts.

*LoRA* is a row of its own. It shows the bytes that a later save adds to the store if the base is frozen, relative to
the trained state.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from . import floors, ranks
from .report import Column, Report
from .servers import S3Server
from .state import Training
from .ways.spot import Spot

SETTLE_S = 0.5  # seconds for the pusher to remove an older step, in which nothing is measured
BUCKET = "durable"

COLUMNS = [
    Column("local_s", "local s", ratio=True),
    Column("committed_s", "local to committed s", ratio=True),
    Column("local_to_floor", "local x floor", ".2f"),
    Column("committed_to_floor", "committed x floor", ".2f"),
    Column("pushed_ratio", "pushed x trained", ".3f"),
]


def add_arguments(parser):
    parser.add_argument("--gb", type=float, default=1.0, help="size of the state in GB")
    parser.add_argument("--ranks", type=int, default=1, help="processes, with DDP")
    parser.add_argument("--saves", type=int, default=5, help="rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", help="where to save; the system's temporary folder by default")


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("gb", "ranks", "device", "saves")}
    report = Report("durable", settings, COLUMNS)
    folder = Path(tempfile.mkdtemp(prefix="spot-bench-", dir=arguments.folder))
    try:
        with S3Server() as server:
            server.create_bucket(BUCKET)
            times = ranks.run(_measure, arguments.ranks, folder, server.storage_options(), arguments)
        pushed, trained = ranks.run(_push_adapted, 1, folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not times["raw O_DIRECT write"]["local_s"]:
        report.not_run["raw O_DIRECT write"] = f"refused by the file system of {folder}"
        del times["raw O_DIRECT write"]
    for way, figures in times.items():
        medians = {key: statistics.median(values) for key, values in figures.items()}
        report.rows.append({"way": way, **medians})
    _add_ratios(report.rows)
    report.rows.append({"way": "spot_plugins, LoRA", "pushed_ratio": pushed / trained, "trained_bytes": trained})
    return report


def _measure(folder, options, arguments):
    rank, world_size = ranks.current()
    training = Training(arguments.gb, arguments.device, world_size=world_size)
    spot = Spot(training, folder, f"s3://{BUCKET}/run", f"{folder}/local-{rank}", options)
    num_bytes = _save(spot)[2]  # the first save allocates the buffers
    memory = floors.memory_of(num_bytes)
    clients = [client(BUCKET, options) for client in floors.clients()]
    times = {"spot_plugins": {"local_s": [], "committed_s": []}, "raw O_DIRECT write": {"local_s": []}}
    times |= {client.name: {"committed_s": []} for client in clients}
    for number in range(arguments.saves):
        training.step(spot.guard)
        time.sleep(SETTLE_S)
        local_s, committed_s, _ = _save(spot)
        times["spot_plugins"]["local_s"].append(local_s)
        times["spot_plugins"]["committed_s"].append(committed_s)
        time.sleep(SETTLE_S)
        try:
            raw_s = _slowest(lambda: floors.raw_write(folder / f"raw-{rank}", memory))
            times["raw O_DIRECT write"]["local_s"].append(raw_s)
        except OSError:
            pass  # the report names the reason
        for client in clients:
            taken_s = _slowest(lambda client=client: client.put(f"{type(client).__name__}-{rank}", memory))
            times[client.name]["committed_s"].append(taken_s)
        if rank == 0:
            print(
                f"round {number + 1} of {arguments.saves}: local {local_s:.2f} s, then {committed_s:.2f} s", flush=True
            )
    spot.close()
    return times


def _save(spot):
    """Return the seconds to the local disk, those from there to the commit, and this rank's bytes."""
    from spot_plugins.events import Committed, Staged, WrittenLocally

    step = spot.training.num_steps
    ranks.gather(None)
    started = time.perf_counter()
    spot.save(step).wait()
    written_at = spot.received[WrittenLocally, step][0]
    committed_at = spot.received[Committed, step][0]
    local_s = max(ranks.gather(written_at - started))
    return local_s, max(ranks.gather(committed_at - written_at)), spot.received[Staged, step][1].num_bytes


def _slowest(action):
    ranks.gather(None)
    started = time.perf_counter()
    action()
    return max(ranks.gather(time.perf_counter() - started))


def _push_adapted(folder, arguments):
    """Return the bytes that a second save adds to the store if the base is frozen, and the bytes that are trained."""
    training = Training(arguments.gb, arguments.device, frozen=True)
    spot = Spot(training, folder, f"file://{folder}/adapted", keep_last=10)
    sizes = []
    for _ in range(2):
        training.step(spot.guard)
        spot.save(training.num_steps).wait()
        files = [path for path in (folder / "adapted").rglob("*") if path.is_file()]
        sizes.append({(path, path.stat().st_mtime_ns): path.stat().st_size for path in files})
    spot.close()
    added = sum(size for key, size in sizes[1].items() if key not in sizes[0])
    return added, training.num_bytes(trained_only=True)


def _add_ratios(rows):
    """Add to the first row its ratios to the best of the others."""
    first, others = rows[0], rows[1:]
    for key in ("local", "committed"):
        floor_s = min((row[f"{key}_s"] for row in others if f"{key}_s" in row), default=None)
        if floor_s:
            first[f"{key}_to_floor"] = first[f"{key}_s"] / floor_s
