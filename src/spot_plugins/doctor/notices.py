"""Findings about notices: where this machine is, who announces its end, and whether the services answer."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import SpotConfig
from ..notices.sources import make_sources
from ..notices.surroundings import Surroundings
from .findings import Finding


def look_at_notices(config: SpotConfig, surroundings: Surroundings) -> Iterator[Finding]:
    """Say which notices a training gets here, and ask each of their sources once."""
    summary = surroundings.summary(surroundings.sources)
    if summary is None:
        places = ", ".join(surroundings.providers)
        yield Finding(
            "notices",
            "warning",
            f"runs on {places}, where {surroundings.limited_by} gives no usable notice",
            "save often (spot plan computes the best interval)",
        )
    else:
        yield Finding("notices", "good", summary)
    for source in make_sources(surroundings.sources, config.notice_file, config.grace_s):
        try:
            announced = source.poll()
        except Exception as error:  # noqa: BLE001 - a service may answer anything
            yield Finding(
                "notices",
                "bad",
                f"{source.name} does not answer: {error}",
                "let this machine or container reach its service: see docs/notices.md",
            )
        else:
            answer = "announces no end of this machine" if announced is None else "announces the end of this machine"
            yield Finding("notices", "good" if announced is None else "warning", f"{source.name} answers: it {answer}")
        finally:
            source.close()
