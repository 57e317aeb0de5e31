"""Sources by their names in the settings."""

from __future__ import annotations

from collections.abc import Iterable

from .aws import AwsSource
from .azure import AzureSource
from .base import NoticeSource
from .file import file_or_page
from .gcp import GcpSource
from .slurm import SlurmSource


def make_sources(names: Iterable[str], place: str | None, grace_s: float) -> list[NoticeSource]:
    """
    Return the sources that are called *names*, each once, and the one for the file or page *place*, if any.

    *grace_s* is what they plan for when they cannot know.
    """
    made: list[NoticeSource] = [_make(name, grace_s) for name in dict.fromkeys(names)]
    if place is not None:
        made.append(file_or_page(place, grace_s))
    return made


def _make(name: str, grace_s: float) -> NoticeSource:
    match name:
        case "aws":
            return AwsSource()
        case "gcp":
            return GcpSource(grace_s)
        case "azure":
            return AzureSource()
        case "slurm":
            return SlurmSource(grace_s)
    raise AssertionError(name)
