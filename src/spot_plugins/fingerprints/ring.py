"""
The newest records of one attempt in a file on the local disk, which survives a SIGKILL of the process.

Each record is written to its slot by one call of the system, into the page cache. The file is not forced to disk, so
it does not survive a machine. It has a fixed largest size and is readable by its owner alone.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from typing import Final

from .record import NUM_BYTES, StepRecord, decode_all

logger = logging.getLogger(__name__)

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
    """The file of this attempt and rank."""

    def __init__(self, folder: str, ring_id: RingId) -> None:
        """
        Make the file.

        Raises:
            OSError: The disk takes no file.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, ring_id.name)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.pwrite(self._file, ring_id.header, 0)

    def write(self, step: int, record: bytes) -> bool:
        """Write the encoded *record* of *step* to its slot. Return False if the disk has failed; the file is closed."""
        try:
            os.pwrite(self._file, record, _HEADER.size + step % NUM_SLOTS * NUM_BYTES)
        except OSError as error:
            logger.info("the local disk takes no fingerprints of steps any more: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Close the file. It stays on the disk."""
        os.close(self._file)


class RingReader:
    """Reads the file of an attempt while it is written, by another process than the one that writes it."""

    def __init__(self, folder: str, ring_id: RingId) -> None:
        self._folder = folder
        self._id = ring_id
        self.records: dict[int, StepRecord] = {}
        """All records that were read so far, by their steps."""

    def poll(self) -> None:
        """Read what is new."""
        if not self.records:
            self.records = read(self._folder, self._id)
            return
        last = max(self.records)
        try:
            file = os.open(os.path.join(self._folder, self._id.name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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


def find(folder: str, rank: int) -> list[RingId]:
    """Return the files of *rank* in *folder*, of the newest attempt first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [ring_id for name in names if (ring_id := RingId.parse(name)) is not None and ring_id.rank == rank]
    return sorted(found, key=lambda each: each.attempt, reverse=True)


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
