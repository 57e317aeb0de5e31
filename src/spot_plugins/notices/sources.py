"""Notice sources by their names in the settings."""

from __future__ import annotations

from collections.abc import Iterable

from .aws import AwsSource
from .azure import AzureSource
from .base import NoticeSource
from .file import file_or_page
from .gcp import GcpSource
from .slurm import SlurmSource


def make_sources(names: Iterable[str], notice_file: str | None, grace_s: float) -> list[NoticeSource]:
    """
    Make the notice sources of a training.

    Args:
        names: Names of sources. Each one is made once.
        notice_file: Path of a file or URL of a page that announces a notice, or None.
        grace_s: Seconds to assume between a notice and the end of the machine, if a source does not know them.
    """
    made: list[NoticeSource] = [_make(name, grace_s) for name in dict.fromkeys(names)]
    if notice_file is not None:
        made.append(file_or_page(notice_file, grace_s))
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
