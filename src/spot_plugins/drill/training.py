"""One life of the training: the command runs, faults hit it, and all its processes end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..clock import DRILL_VARIABLE
from ..fingerprints import ring
from ..fingerprints.record import StepRecord
from ..fingerprints.ring import RingReader
from ..fingerprints.seen import Seen, read_seen
from ..format.attempts import newest_attempt
from ..format.commit import committed_steps
from ..launch.drilled import FOLDER_VARIABLE, STEPS_VARIABLE, DrillFolder, Rank
from ..launch.supervisor import end_with
from ..store import ObjectStore, drilled_disk, open_local
from .faults import store_directory
from .processes import Processes, is_pusher

_SIGNALS: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
"""The signals of faults and notices. A shell that starts the drill in the background lets it ignore some of them."""


class Place:
    """
    The folder of a training, with the store behind a symbolic link, through which an outage is made.

    Args:
        path: The folder. It is made.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.folder = DrillFolder(path)
        self.store_link = path / "runs"
        store_directory(self.store_link).mkdir()
        self.store_link.symlink_to(store_directory(self.store_link).name)
        self.local_directory = path / "local"
        self.disk_file = path / "disk"
        self.clock_file = path / "clock"
        self.processes = Processes(path)

    def names(self) -> list[str]:
        """Return the names of all runs that were trained here."""
        return sorted({each.run for each in self.folder.ranks()})

    def url(self, name: str) -> str:
        """Return the URL of a run, which does not lead through the link."""
        return f"file://{store_directory(self.store_link) / name}"

    def store(self) -> ObjectStore:
        """Return the store of the newest run. Raise LookupError if there is none."""
        return open_local(str(store_directory(self.store_link) / self.names()[-1]))

    def committed(self) -> list[int]:
        """Return the committed steps of the newest run, the newest first."""
        return [each.step_id.step for each in committed_steps(self.store())] if self.names() else []

    def resumed(self, since: int) -> list[Rank]:
        """Return the ranks of the newest run that have resumed in an attempt after *since*."""
        known = [each for each in self.folder.ranks() if each.attempt > since and each.start is not None]
        return [each for each in known if each.run in self.names()[-1:]]

    def newest_attempt(self) -> int:
        """Return the number of the newest attempt, 0 if there is none."""
        return newest_attempt(self.store()) if self.names() else 0


class Training:
    """
    The processes of one life. It is the :class:`~.target.Target` of faults.

    Args:
        place: The folder of the training.
        command: The program and its arguments.
        output: The file that gets what it prints.
        max_steps: The step after which it ends, or None.
        random: The source of all choices.
    """

    def __init__(
        self, place: Place, command: Sequence[str], output: Path, max_steps: int | None, random: random.Random
    ) -> None:
        self.random = random
        self.grace_s = self.notice_s = 0.0
        self._place = place
        self._since = place.newest_attempt()
        self._readers: dict[ring.RingId, RingReader] = {}
        place.folder.notice.unlink(missing_ok=True)
        place.disk_file.unlink(missing_ok=True)
        place.clock_file.unlink(missing_ok=True)
        environ = {
            **os.environ,
            FOLDER_VARIABLE: str(place.folder.path),
            drilled_disk.VARIABLE: str(place.disk_file),
            DRILL_VARIABLE: str(place.clock_file),
        }
        environ |= {} if max_steps is None else {STEPS_VARIABLE: str(max_steps)}
        parent = os.getpid()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches only the drill
                preexec_fn=lambda: _begin(parent),
            )

    @property
    def command(self) -> int:
        """See :class:`~.target.Target`."""
        return self._process.pid

    @property
    def ranks(self) -> Mapping[int, int]:
        """See :class:`~.target.Target`."""
        alive = self._place.processes.pids()
        known: list[Rank] = [each for each in self._place.folder.ranks() if each.attempt > self._since]
        return {each.rank: each.pid for each in known if each.pid in alive}

    @property
    def pushers(self) -> Sequence[int]:
        """See :class:`~.target.Target`."""
        return sorted(pid for pid in self._place.processes.pids() if is_pusher(pid))

    @property
    def notice_file(self) -> Path:
        """See :class:`~.target.Target`."""
        return self._place.folder.notice

    @property
    def local_directory(self) -> Path:
        """See :class:`~.target.Target`."""
        return self._place.local_directory

    @property
    def store_link(self) -> Path:
        """See :class:`~.target.Target`."""
        return self._place.store_link

    @property
    def disk_file(self) -> Path:
        """See :class:`~.target.Target`."""
        return self._place.disk_file

    @property
    def clock_file(self) -> Path:
        """See :class:`~.target.Target`."""
        return self._place.clock_file

    @property
    def store(self) -> ObjectStore:
        """See :class:`~.target.Target`."""
        return self._place.store()

    def signal_all(self, number: signal.Signals) -> None:
        """See :class:`~.target.Target`."""
        if number is signal.SIGKILL:
            self._place.processes.kill()  # also those that are started meanwhile
        else:
            self._place.processes.signal(self._place.processes.pids(), number)

    def exit_code(self) -> int | None:
        """Return the exit code of the command, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the command. Return whether it has ended."""
        try:
            # wait: timeout_s of the caller; the caller looks again
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_step(self) -> int:
        """Return the last step that rank 0 has done in this life. 0 if there is none yet."""
        self._read(rank=0)
        newest = max((each for each in self._readers if each.rank == 0), key=lambda each: each.attempt, default=None)
        return 0 if newest is None else max(self._readers[newest].records, default=0)

    def records(self) -> dict[ring.RingId, Mapping[int, StepRecord]]:
        """Return the fingerprints of all steps of this life, by attempt and rank."""
        rank = 0
        while self._read(rank):
            rank += 1
        return {ring_id: reader.records for ring_id, reader in self._readers.items()}

    def seen(self) -> dict[ring.RingId, dict[int, Seen]]:
        """Return what was seen of all steps of :meth:`records`, by attempt and rank."""
        return {ring_id: read_seen(reader.path) for ring_id, reader in self._readers.items()}

    def _read(self, rank: int) -> bool:
        """Read the files of *rank* of this life. Return whether there are any."""
        found = False
        for name in self._place.names():
            folder = str(self._place.folder.live(name))
            for ring_id in ring.files_in(folder):
                if ring_id.rank == rank and ring_id.attempt > self._since:
                    found = True
                    self._readers.setdefault(ring_id, RingReader(folder, ring_id)).poll()
        return found


def _begin(parent: int) -> None:
    """Let the command treat signals as in a terminal, however the drill was started, and end with *parent*."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    end_with(parent)
