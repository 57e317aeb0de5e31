"""Files and folders that appear whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError
from ..format.keys import StepId
from ..resume.weights import Weight, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The step that was written, and how much of it."""

    step_id: StepId
    num_tensors: int
    num_bytes: int
    """Bytes of the tensors."""
    notes: tuple[str, ...] = ()
    """Sentences on what the step has and the output has not."""


def exported(weights: Weights, tensors: Sequence[Weight], notes: Sequence[str] = ()) -> Exported:
    """Return the result for *tensors* of *weights*."""
    num_bytes = sum(each.num_bytes for each in tensors)
    return Exported(step_id=weights.step_id, num_tensors=len(tensors), num_bytes=num_bytes, notes=tuple(notes))


def no_tensors(weights: Weights) -> list[str]:
    """Return a sentence on each value of the model that is no tensor."""
    return [f"{name} is no tensor, so it is left out" for name in weights.left_out]


def check_new(out: str | os.PathLike[str]) -> None:
    """Raise :exc:`ConfigError` if *out* exists."""
    if os.path.lexists(out):
        raise ConfigError(f"out={os.fspath(out)!r} exists already: give the path of a new file or folder")


@contextmanager
def new_file(out: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    Open a file that appears at *out* at the end of the ``with`` block, if that succeeds.

    Raises:
        ConfigError: *out* cannot be written.
    """
    path = Path(out)
    unfinished = _unfinished(path)
    with _errors_of(path):
        try:
            with unfinished.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Make a folder that appears at *out* at the end of the ``with`` block, if that succeeds.

    Raises:
        ConfigError: *out* cannot be written.
    """
    path = Path(out)
    unfinished = _unfinished(path)
    with _errors_of(path):
        unfinished.mkdir()
        try:
            yield unfinished
            for each in unfinished.iterdir():
                with each.open("rb") as file:
                    os.fsync(file.fileno())
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = error.__context__ if isinstance(error, RuntimeError) else error  # torch raises one after the other
        if not isinstance(refusal, OSError):
            raise
        raise ConfigError(f"out={str(path)!r} cannot be written: {refusal.strerror}") from error
