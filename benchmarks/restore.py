"""
The time until a saved state is back in the tensors of a training, from the local disk and from S3.

*Warm* is with the page cache as the save left it. *Cold* is with an empty page cache, which needs root. S3 is a real
server on this machine. Each way restores its own save into the live model and optimizer. The floors move the same
number of bytes: a raw read into allocated memory, and bare clients of S3. spot_plugins is timed from its first request
to the store to the last restored object. *Session* is a whole new session, with its pusher process and its claim of an
attempt. The figures are medians. On several ranks, all restore at once and the slowest rank counts.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from spot_plugins.events import Resumed

from . import floors, ranks, ways
from .report import Column, Report
from .servers import S3Server
from .state import Training
from .ways.spot import Spot

BUCKET = "restore"
SPOT = "spot_plugins"
PEERS = ("torch.save", "DCP save", "Lightning ModelCheckpoint", "Accelerate save_state", "torch_checkpointing")

COLUMNS = [
    Column("warm_s", "warm s", ratio=True),
    Column("cold_s", "cold s", ratio=True),
    Column("s3_s", "S3 s", ratio=True),
    Column("session_s", "session s"),
    Column("warm_to_floor", "warm x floor", ".2f"),
    Column("cold_to_floor", "cold x floor", ".2f"),
    Column("s3_to_floor", "S3 x floor", ".2f"),
]


def add_arguments(parser):
    parser.add_argument("--gb", type=float, default=1.0, help="size of the state in GB")
    parser.add_argument("--ranks", type=int, default=1, help="processes, with DDP")
    parser.add_argument("--saves", type=int, default=3, help="restores of each kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", help="where to save; the system's temporary folder by default")
    ways.add_flag(parser, (SPOT, *PEERS))


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("gb", "ranks", "device", "saves")}
    report = Report("restore", settings, COLUMNS)
    if not floors.drop_caches():
        report.not_run["cold"] = "/proc/sys/vm/drop_caches cannot be written"
    with S3Server() as server:
        server.create_bucket(BUCKET)
        options = server.storage_options()
        _add(report, SPOT, _restore_spot, arguments, options)
        _add(report, "raw read", _read_raw, arguments, False)
        _add(report, "raw read, O_DIRECT", _read_raw, arguments, True)
        for client in floors.clients():
            _add(report, client.name, _read_s3, arguments, client, options)
    for name in arguments.ways:
        reason = ways.why_not(name, arguments.device)
        if name == SPOT:
            continue
        if reason is None:
            _add(report, name, _restore_peer, arguments, name, group=ways.find(name).needs_group)
        else:
            report.not_run[name] = reason
    _add_ratios(report.rows)
    return report


def _add(report, way, function, arguments, *further, group=False):
    folder = Path(tempfile.mkdtemp(prefix="spot-bench-", dir=arguments.folder))
    try:
        times = ranks.run(function, arguments.ranks, folder, arguments, *further, group=group)
        report.rows.append({"way": way, **{key: statistics.median(values) for key, values in times.items() if values}})
        print(
            f"{way}: {', '.join(f'{key} {value:.3g}' for key, value in list(report.rows[-1].items())[1:])}", flush=True
        )
    except RuntimeError as error:
        report.fail(way, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _restore_spot(folder, arguments, options):
    rank, world_size = ranks.current()
    training = Training(arguments.gb, arguments.device, world_size=world_size)

    def local(name):
        return f"{folder}/{name}-{rank}"

    url = f"s3://{BUCKET}/run"
    spot = Spot(training, folder, url, local("local"), options)
    step = training.num_steps
    spot.save(step).wait()
    saved = training.fingerprint()
    training.step()
    times = {"warm_s": [], "cold_s": [], "s3_s": [], "session_s": []}

    def load(key, from_local):
        nonlocal spot
        ranks.gather(None)
        if from_local:
            session_s = spot.load(step)
        else:
            spot.close()
            started = time.perf_counter()
            spot = Spot(training, folder, url, local(f"empty-{len(times['s3_s'])}"), options)
            session_s = time.perf_counter() - started
        _check(training, saved)
        resumed = spot.received[Resumed, step][1]
        if (resumed.from_local_bytes > 0) != from_local:
            raise RuntimeError(f"{resumed.from_local_bytes} bytes came from the local disk, from_local={from_local}")
        times[key].append(max(ranks.gather(resumed.load_s)))
        if key == "warm_s":
            times["session_s"].append(max(ranks.gather(session_s)))

    for _ in range(arguments.saves):
        load("warm_s", True)
    for _ in range(arguments.saves):
        if _all_cold():
            load("cold_s", True)
    for _ in range(arguments.saves):
        load("s3_s", False)
    spot.close()
    return times


def _read_raw(folder, arguments, direct):
    rank = ranks.current()[0]
    memory = floors.memory_of(int(arguments.gb * 1e9))
    path = folder / f"raw-{rank}"
    path.write_bytes(memory)
    return _timed(lambda: floors.raw_read(path, memory, direct=direct), arguments)


def _read_s3(folder, arguments, client, options):
    memory = floors.memory_of(int(arguments.gb * 1e9))
    client = client(BUCKET, options)
    if ranks.current()[0] == 0:
        client.put("bytes", memory)
    return {"s3_s": [_slowest(lambda: client.get("bytes", memory)) for _ in range(arguments.saves)]}


def _restore_peer(folder, arguments, name):
    kind = ways.find(name)
    training = Training(arguments.gb, arguments.device, world_size=ranks.current()[1], wrap=not kind.wraps)
    way = kind(training, folder)
    step = training.num_steps
    way.run(lambda: way.save(step).wait())
    saved = training.fingerprint()
    training.step(way.guard)
    times = _timed(None, arguments, lambda: max(ranks.gather(way.load(step))))
    _check(training, saved)
    way.close()
    return times


def _check(training, saved):
    if (found := training.fingerprint()) != saved:
        raise RuntimeError(f"the restored state has the fingerprint {found}, not {saved} of the saved one")


def _timed(action, arguments, measure=None):
    measure = measure or (lambda: _slowest(action))
    ranks.gather(None)
    times = {"warm_s": [measure() for _ in range(arguments.saves)], "cold_s": []}
    for _ in range(arguments.saves):
        if _all_cold():
            times["cold_s"].append(measure())
    return times


def _slowest(action):
    ranks.gather(None)
    started = time.perf_counter()
    action()
    return max(ranks.gather(time.perf_counter() - started))


def _all_cold():
    """Empty the page cache, on rank 0 for all. Return False if that is not allowed."""
    return ranks.gather(ranks.current()[0] == 0 and floors.drop_caches())[0]


def _add_ratios(rows):
    """Add to the first row its ratios to the best floor."""
    floor_names = ("raw read", "raw read, O_DIRECT", *(client.name for client in floors.clients()))
    for key in ("warm", "cold", "s3"):
        found = [row[f"{key}_s"] for row in rows if row["way"] in floor_names and f"{key}_s" in row]
        if rows and rows[0]["way"] == SPOT and found and f"{key}_s" in rows[0]:
            rows[0][f"{key}_to_floor"] = rows[0][f"{key}_s"] / min(found)
