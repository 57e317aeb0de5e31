"""
The newest records of one attempt in a file on the local disk, which survives a SIGKILL of the process.

The training thread writes each record to its slot in memory. The pusher process, which survives, has the same memory
and writes it to the file. The file is not forced to disk, so it does not survive a machine. It has a fixed largest size
and is readable by its owner alone.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..push import SharedFile
from .record import NUM_BYTES, StepRecord, decode_all
from .seen import Seen, SeenFile

NUM_SLOTS: Final = 4096
"""Steps in a file. A newer step takes the slot of the oldest one."""

MOST_FILES: Final = 4
"""Files of earlier attempts that are kept for one rank."""

_HEADER: Final = Struct("<16sQII")  # magic, attempt, rank, world size
_MAGIC: Final = b"spot-plugins fp1"
_MAX_BYTES: Final = _HEADER.size + NUM_SLOTS * NUM_BYTES
_NAME: Final = re.compile(r"([0-9]{6,12})-r([0-9]{5,8})-of-([0-9]{5,8})\.steps")


@dataclass(frozen=True, slots=True)
class RingId:
    """The attempt and the rank that a file belongs to."""

    attempt: int
    rank: int
    world_size: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.attempt:06d}-r{self.rank:05d}-of-{self.world_size:05d}.steps"

    @classmethod
    def parse(cls, name: str) -> RingId | None:
        """Return what *name* says, or None if no file of this package has such a name."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(*map(int, found.groups()))

    @property
    def header(self) -> bytes:
        """First bytes of the file."""
        return _HEADER.pack(_MAGIC, self.attempt, self.rank, self.world_size)


class Ring:
    """The records of this attempt and rank, in memory that the pusher process keeps on the local disk."""

    def __init__(self, folder: str, ring_id: RingId, live_folder: str | None = None) -> None:
        """
        Make the memory. The disk is not used, unless *live_folder* is given.

        Args:
            folder: Folder of the file.
            ring_id: The attempt and the rank.
            live_folder: Folder of a file that is the memory, so that a drill sees each step at once. None: no file is.

        Raises:
            OSError: The system has no memory for it.
        """
        live = None if live_folder is None else os.path.join(live_folder, ring_id.name)
        self.file = SharedFile(os.path.join(folder, ring_id.name), _MAX_BYTES, live)
        self._memory = self.file.memory
        self._memory[: _HEADER.size] = ring_id.header
        self._seen = None if live is None else SeenFile(live)

    def write(self, step: int, record: bytes, seen: Seen | None = None) -> None:
        """Write the encoded *record* of *step* to its slot. A drill also gets what is *seen* of the step."""
        start = _HEADER.size + step % NUM_SLOTS * NUM_BYTES
        self._memory[start : start + NUM_BYTES] = record
        if self._seen is not None and seen is not None:
            self._seen.write(step, seen)


class RingReader:
    """Reads the file of an attempt while it is written, by another process than the one that writes it."""

    def __init__(self, folder: str, ring_id: RingId) -> None:
        self._folder = folder
        self._id = ring_id
        self.path = os.path.join(folder, ring_id.name)
        """The file."""
        self.records: dict[int, StepRecord] = {}
        """All records that were read so far, by their steps."""

    def poll(self) -> None:
        """Read what is new."""
        if not self.records:
            self.records = read(self._folder, self._id)
            return
        last = max(self.records)
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            while (record := _slot(file, last + 1)) is not None and record.step > last:
                if record.step > last + 1:  # the writer has gone around
                    self.records |= read(self._folder, self._id)
                    return
                last = record.step
                self.records[last] = record
        finally:
            os.close(file)


def _slot(file: int, step: int) -> StepRecord | None:
    return StepRecord.decode(os.pread(file, NUM_BYTES, _HEADER.size + step % NUM_SLOTS * NUM_BYTES))


def files_in(folder: str) -> list[RingId]:
    """Return the files of all ranks in *folder*, of the newest attempt first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [ring_id for name in names if (ring_id := RingId.parse(name)) is not None]
    return sorted(found, key=lambda each: each.attempt, reverse=True)


def find(folder: str, own: RingId) -> list[RingId]:
    """
    Return the files in *folder* that the rank of *own* looks after, of the newest attempt first.

    They are its own files, and those of ranks that the job no longer has. Several ranks look after the latter, because
    no rank knows which others are on its machine.
    """
    return [each for each in files_in(folder) if each.rank == own.rank or each.rank >= own.world_size]


def read(folder: str, ring_id: RingId) -> dict[int, StepRecord]:
    """Return the intact records of a file by their steps. None of a file that is not what its name says."""
    try:
        # O_NONBLOCK: the open of a pipe of this name must not wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(os.path.join(folder, ring_id.name), flags)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > _MAX_BYTES:
                return {}
            data = os.pread(file, _MAX_BYTES, 0)
        finally:
            os.close(file)
    except OSError:
        return {}
    if data[: _HEADER.size] != ring_id.header:
        return {}
    return {record.step: record for record in decode_all(data[_HEADER.size :])}


def remove(folder: str, ring_id: RingId) -> None:
    """Remove a file, if that is possible."""
    with suppress(OSError):
        os.unlink(os.path.join(folder, ring_id.name))
