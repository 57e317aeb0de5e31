"""Event logs for tests: written by hand into a store, and counted anew from the raw lines by other rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest

from spot_plugins.eventlog.records import Record, encode
from spot_plugins.format.keys import SegmentKey

SPOT = [sys.executable, "-m", "spot_plugins.cli"]
BEGAN_AT = 1_700_000_000.0


def write_log(store, attempt, entries, *, rank=0, world_size=1, offset=BEGAN_AT, jump=(0.0, 0.0), host="machine"):
    """
    Put one segment. *entries* are pairs of a monotonic time and an entry; *offset* makes it a time of the clock.

    *jump* is a monotonic time, and the seconds by which the clock is set then.
    """
    facts = {"format": 1, "attempt": attempt, "rank": rank, "num_dropped": 0, "world_size": world_size, "host": host}
    lines = [encode(Record(offset + at + (jump[1] if at >= jump[0] else 0.0), at, entry)) for at, entry in entries]
    store.put(SegmentKey(attempt, rank, 0).key, json.dumps(facts).encode() + b"\n" + b"".join(lines))


def recount(objects):
    """
    Count the figures of a run again, from the raw lines of *objects* (bytes by key) and without the package.

    Each second of rank 0 is charged as the lines go by. Which steps are kept is found by a replay: an attempt that
    begins at a step throws away all steps after it.
    """
    ranks = defaultdict(list)
    for key in sorted(objects):
        if key.startswith("events/"):
            first, *lines = objects[key].splitlines()
            facts = json.loads(first)
            ranks[facts["attempt"], facts["rank"]] += [json.loads(line) for line in lines]
    by_attempt = defaultdict(dict)
    for (attempt, rank), lines in ranks.items():
        by_attempt[attempt][rank] = sorted(lines, key=lambda line: line["monotonic"])

    trained = {}  # by step, the attempt that trained it
    total, shares, lost, ends = defaultdict(float), {}, defaultdict(int), {}
    for attempt in sorted(by_attempt):
        lines = by_attempt[attempt][0]
        charged, start = charge(lines)
        ends[attempt] = end_of(by_attempt[attempt])
        reached = max(
            [start or 0]
            + [
                line["fields"].get("step") or 0
                for each in by_attempt[attempt].values()
                for line in each
                if counts(line)
            ]
        )
        if start is not None:
            for step in [step for step in trained if step > start]:
                lost[trained.pop(step)] += 1
            trained |= dict.fromkeys(range(start + 1, reached + 1), attempt)
            shares[attempt] = (reached - start, charged.pop("training"))
            if reached == start:
                charged["prep"] += shares[attempt][1]
        for name, seconds in charged.items():
            total[name] += seconds
    last = max(by_attempt)
    if ends[last] not in ("finished", "running"):
        stored = [
            {line["fields"]["step"] for line in lines if line["kind"] == "Committed"}
            for lines in by_attempt[last].values()
        ]
        limit = max(set.intersection(*stored), default=None)
        for step in [step for step, attempt in trained.items() if attempt == last]:
            if limit is None or step > limit:
                lost[trained.pop(step)] += 1
    kept = defaultdict(int)
    for attempt in trained.values():
        kept[attempt] += 1
    for attempt, (num_steps, seconds) in shares.items():
        total["productive"] += seconds * kept[attempt] / max(num_steps, 1)
        total["wasted"] += seconds * lost[attempt] / max(num_steps, 1)
    paid_s = sum(total.values())
    return {
        "seconds": dict(total),
        "paid_s": paid_s,
        "goodput": total["productive"] / paid_s,
        "kept_steps": len(trained),
        "lost_steps": sum(lost.values()),
        "lost": {attempt: lost[attempt] for attempt in by_attempt},
        "ends": ends,
        "interruptions": sum(end in ("killed", "left") for end in ends.values()),
    }


def counts(line):
    """Return whether the step of *line* is one that was done."""
    return line["kind"] in ("TrainingBegan", "Heartbeat", "Ended", "Staged", "Committed")


def charge(lines):
    """Return the seconds of one attempt by what they went into, and the step at which training began."""
    kinds = defaultdict(list)
    for line in lines:
        kinds[line["kind"]].append(line)
    charged = dict.fromkeys(("startup", "prep", "restore", "save", "leave"), 0.0)
    charged["startup"] = kinds["Started"][0]["fields"]["process_s"] or 0.0
    opened = kinds["Started"][0]["monotonic"]
    end = (kinds["Ended"] or kinds["TrainerGone"] or lines)[-1]["monotonic"]
    charged["restore"] = sum(line["fields"]["load_s"] for line in kinds["Resumed"])
    if not kinds["TrainingBegan"]:
        charged["prep"] = end - opened - charged["restore"]
        return charged, None
    began = kinds["TrainingBegan"][0]["monotonic"]
    charged["prep"] = began - opened - charged["restore"]
    last = (kinds["Leaving"] or [{"monotonic": end}])[0]["monotonic"]
    is_planned = kinds["Leaving"] or (kinds["Ended"] and kinds["Ended"][-1]["fields"]["is_finished"])
    for line in kinds["Staged"]:
        if is_planned and line["fields"]["trigger"] in ("notice", "end"):
            last = line["monotonic"] - line["fields"]["copy_s"]
    charged["leave"] = end - last
    for line in kinds["Staged"]:
        if line["fields"]["trigger"] not in ("notice", "end"):
            charged["save"] += line["fields"]["stall_s"]
    return {**charged, "training": last - began - charged["save"]}, kinds["TrainingBegan"][0]["fields"]["step"] or 0


def end_of(ranks):
    """Return how an attempt ended that is over, from the lines of its ranks."""
    ends = [line["fields"] for lines in ranks.values() for line in lines if line["kind"] == "Ended"]
    if any(end["is_finished"] for end in ends):
        return "finished"
    if any(not {line["kind"] for line in lines} & {"Ended", "Leaving"} for lines in ranks.values()):
        return "killed"
    if any(line["kind"] == "Leaving" for lines in ranks.values() for line in lines):
        return "left"
    return "failed" if any(end["error"] for end in ends) else "stopped"


def agrees(url, counted, environment=None):
    """Compare what ``spot report`` prints of the run at *url* with figures that were *counted* from the raw lines."""
    words = [*SPOT, "report", str(url), "--json"]
    variables = {**os.environ, **(environment or {})}
    output = subprocess.run(words, capture_output=True, text=True, check=True, env=variables)
    document = json.loads(output.stdout)
    for name in ("goodput", "paid_s", "seconds"):
        wanted = counted[name] if name != "seconds" else {**counted[name], "waiting": document["seconds"]["waiting"]}
        assert document[name] == pytest.approx(wanted, rel=1e-9), name
    assert (document["kept_steps"], document["lost_steps"]) == (counted["kept_steps"], counted["lost_steps"])
    assert {each["number"]: each["how"] for each in document["attempts"]} == counted["ends"]
    assert document["interruptions"]["count"] == counted["interruptions"]
    assert document["version"] == 1
