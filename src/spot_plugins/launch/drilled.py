"""
The side of a drill that lives in the training: the place of the run, its last step, and what the drill reads there.

``spot drill`` sets :data:`FOLDER_VARIABLE` for the training and all its processes. A session obeys it before any
setting of the program, so that a drill never reaches the run, the local copies or the notice file of the program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ..config import SpotConfig, printable_url

FOLDER_VARIABLE: Final = "SPOT_PLUGINS_DRILL"
"""Variable with the path of the folder. Only ``spot drill`` sets it."""

STEPS_VARIABLE: Final = "SPOT_PLUGINS_DRILL_STEPS"
"""Variable with the step after which the training ends. Only ``spot drill`` sets it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """A rank of the training, as it makes itself known to the drill when its session is open."""

    pid: int
    rank: int
    attempt: int
    run: str
    """Name of the run, made from the URL of the program."""
    start: int | None = None
    """The step after which it trains, 0 on a first run. None until it has resumed."""
    rejected: Mapping[int, str] = field(default_factory=dict)
    """The committed steps that it could not use when it resumed, with the reasons."""


@dataclass(frozen=True, slots=True)
class DrillFolder:
    """The folder of one training of a drill. All its processes know the path."""

    path: Path

    @property
    def notice(self) -> Path:
        """The file whose appearance is a notice."""
        return self.path / "notice"

    @property
    def _ranks(self) -> Path:
        return self.path / "ranks"

    @property
    def _words(self) -> Path:
        return self.path / "words"

    def run(self, name: str) -> Path:
        """Return the directory in which the run *name* is stored."""
        return self.path / "runs" / name

    def local(self, name: str) -> Path:
        """Return the directory of the local copies of the run *name*."""
        return self.path / "local" / name

    def live(self, name: str) -> Path:
        """Return the directory in which the fingerprints of the run *name* can be read as soon as they are taken."""
        return self.path / "live" / name

    def write_rank(self, rank: Rank) -> None:
        """Make *rank* known."""
        self._ranks.mkdir(parents=True, exist_ok=True)
        unfinished = self._ranks / f"{rank.pid}-{rank.run}.tmp"
        unfinished.write_text(json.dumps(asdict(rank)))
        unfinished.replace(unfinished.with_suffix(".json"))

    def ranks(self) -> list[Rank]:
        """Return all ranks that have become known, those of earlier attempts included."""
        return [_rank_of(json.loads(path.read_text())) for path in sorted(self._ranks.glob("*.json"))]

    def write_words(self, text: str) -> None:
        """Keep a warning or an error of a session."""
        self._words.mkdir(parents=True, exist_ok=True)
        with (self._words / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(text) + "\n")

    def words(self) -> Iterator[str]:
        """Yield the warnings and errors of all sessions so far."""
        for path in sorted(self._words.glob("*.jsonl"), key=lambda each: each.stat().st_mtime_ns):
            yield from (json.loads(line) for line in path.read_text().splitlines())


@dataclass(frozen=True, slots=True)
class Drilled:
    """The drill that this process is part of."""

    folder: DrillFolder
    max_steps: int | None
    """The step after which the training ends, or None."""

    def config(self, config: SpotConfig) -> SpotConfig:
        """Return *config* with a run, local copies and a notice file that belong to the drill."""
        name = run_name(config.url)
        return replace(
            config,
            url=f"file://{self.folder.run(name)}",
            local_dir=str(self.folder.local(name)),
            notice_file=str(self.folder.notice),
            storage_options={},
        )

    def banner(self, url: str) -> str:
        """Return the line that says so. *url* is that of the program."""
        end = "" if self.max_steps is None else f", and ends after step {self.max_steps}"
        return f"this is a drill: it trains in a folder of its own, not at {printable_url(url)}{end}"


def drilled(environ: Mapping[str, str] = os.environ) -> Drilled | None:
    """Return the drill that this process is part of, or None."""
    if not (path := environ.get(FOLDER_VARIABLE)):
        return None
    steps = environ.get(STEPS_VARIABLE)
    return Drilled(DrillFolder(Path(path)), int(steps) if steps else None)


def live_folder(config: SpotConfig) -> str | None:
    """Return the directory for fingerprints that a drill reads. *config* is that of the drill. None without a drill."""
    drill = drilled()
    return None if drill is None else str(drill.folder.live(Path(config.url).name))


def run_name(url: str) -> str:
    """Return the name of the run at *url* in a drill. It holds no secret of the URL."""
    return sha256(url.encode()).hexdigest()[:12]


def _rank_of(fields: dict[str, Any]) -> Rank:
    rejected = {int(step): reason for step, reason in fields.pop("rejected").items()}  # JSON has no numbers as keys
    return Rank(**fields, rejected=rejected)
