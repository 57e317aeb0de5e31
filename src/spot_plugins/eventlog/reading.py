"""The reader of the event log. It trusts no byte of a segment, because whoever may write to the bucket wrote it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from ..format.attempts import newest_attempt
from ..format.keys import EVENTS_PREFIX, SegmentKey, parse_segment_key
from ..store import ObjectStore, get_at_most, patiently
from .records import FORMAT, MAX_LINE_BYTES, Record, decode, parse
from .segments import SEGMENT_BYTES

MAX_READ_BYTES: Final = SEGMENT_BYTES + 2 * MAX_LINE_BYTES
"""Largest segment that is read."""

MAX_SEGMENTS_READ: Final = 8192
"""Most segments that are read, 512 MiB. Those of rank 0 and of the newest attempts come first."""

MAX_RANKS: Final = 1_000_000
"""Largest number of ranks that is believed."""

_NUM_READS: Final = 16


@dataclass(slots=True)
class RankLog:
    """The records of one rank in one attempt."""

    attempt: int
    rank: int
    world_size: int = 1
    host: str = ""
    records: list[Record] = field(default_factory=list)
    """In the order of their monotonic times."""


@dataclass(slots=True)
class EventLog:
    """The event log of a run, as far as it can be read."""

    ranks: list[RankLog] = field(default_factory=list)
    """By attempt, then by rank."""
    newest_attempt: int = 0
    """The newest attempt that was claimed. It may have no log."""
    num_unread: int = 0
    """Segments that were not read, because there are too many."""
    num_damaged: int = 0
    """Segments and lines that are no part of a log, or are damaged."""
    num_unknown: int = 0
    """Records of kinds that this version does not know."""
    num_dropped: int = 0
    """Records that the training has dropped, because there were too many."""


def read_event_log(
    store: ObjectStore, most: int | None = None, *, since: int = 0, below: int | None = None
) -> EventLog:
    """
    Read the event log of a run.

    Args:
        store: The store of the run.
        most: Most segments that are read. None: :data:`MAX_SEGMENTS_READ`.
        since: Only this attempt and later ones are read.
        below: Only attempts below this one are read. None: all.

    Raises:
        StoreError: The store does not answer.
    """
    most = MAX_SEGMENTS_READ if most is None else most
    listed = patiently(lambda: list(store.keys(EVENTS_PREFIX)))
    found = [key for each in listed if (key := parse_segment_key(each)) is not None and key.key == each]
    num_damaged = len(listed) - len(found)
    found = [key for key in found if since <= key.attempt and (below is None or key.attempt < below)]
    found.sort(key=lambda key: (key.rank, -key.attempt, -key.number))
    log = EventLog(
        newest_attempt=patiently(lambda: newest_attempt(store)), num_unread=len(found[most:]), num_damaged=num_damaged
    )
    chosen = sorted(found[:most])
    ranks: defaultdict[tuple[int, int], list[tuple[SegmentKey, bytes | None]]] = defaultdict(list)
    with ThreadPoolExecutor(_NUM_READS, "spot-get") as pool:
        for key, data in zip(chosen, pool.map(lambda key: _segment(store, key), chosen), strict=True):
            ranks[key.attempt, key.rank].append((key, data))
    log.ranks = [rank for segments in ranks.values() if (rank := _rank_log(segments, log)) is not None]
    return log


def _segment(store: ObjectStore, key: SegmentKey) -> bytes | None:
    """Return the bytes of a segment. None if it is too large, or is gone."""
    try:
        return patiently(lambda: get_at_most(store, key.key, MAX_READ_BYTES))
    except (KeyError, ValueError):
        return None


def _rank_log(segments: Iterable[tuple[SegmentKey, bytes | None]], log: EventLog) -> RankLog | None:
    """Return the records in the *segments* of one rank, and count in *log* what is none."""
    rank_log: RankLog | None = None
    num_dropped = 0
    for key, data in segments:
        first, *lines = (data or b"").rstrip(b"\n").split(b"\n")
        try:
            facts = _checked_facts(parse(first), key)
        except ValueError:
            log.num_damaged += 1
            continue
        num_dropped = max(num_dropped, facts["num_dropped"])
        rank_log = rank_log or RankLog(key.attempt, key.rank, facts["world_size"], facts["host"])
        _add(lines, rank_log, log)
    log.num_dropped += num_dropped
    if rank_log is not None:
        rank_log.records.sort(key=lambda record: record.monotonic)
    return rank_log


def _add(lines: Iterable[bytes], rank_log: RankLog, log: EventLog) -> None:
    for line in lines:
        try:
            record = decode(line)
        except ValueError:
            log.num_damaged += 1
            continue
        if record is None:
            log.num_unknown += 1
        else:
            rank_log.records.append(record)


def _checked_facts(facts: dict[str, Any], key: SegmentKey) -> dict[str, Any]:
    """Return the facts of a first line. Raise :exc:`ValueError` if they are not those of the segment *key*."""
    numbers = {name: facts.get(name) for name in ("format", "attempt", "rank", "num_dropped", "world_size")}
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers.values()):
        raise ValueError("a number is missing")
    if (numbers["format"], numbers["attempt"], numbers["rank"]) != (FORMAT, key.attempt, key.rank):
        raise ValueError("it belongs to another segment, or to a later format")
    host = facts.get("host")
    if facts["world_size"] > MAX_RANKS or not isinstance(host, str):
        raise ValueError("it belongs to no rank of a training")
    return {**numbers, "host": host[:256]}
