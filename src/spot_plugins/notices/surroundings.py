"""
Where this process runs: from environment variables and from what the machine's firmware says of itself.

Nothing is asked over the network to find out. A link-local address that nobody answers costs seconds, and may belong
to somebody else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import SpotConfig
from ..launch.launcher import Launcher, advice, parent, timeout_s
from . import aws, gcp, slurm

logger = logging.getLogger(__name__)

DMI: Final = Path("/sys/class/dmi/id")
AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
SAGEMAKER_CONFIG: Final = Path("/opt/ml/input/config/resourceconfig.json")


@dataclass(frozen=True, slots=True)
class Provider:
    """What one kind of place gives a process before it ends."""

    name: str
    source: str | None
    """The source to ask, None if there is nothing but a signal."""
    grace_s: float | None
    """Seconds to plan for. None: what the settings say, for only the user knows. 0: no notice at all."""


# The grace is a little less than what they promise; see docs/notices.md.
_PROVIDERS: Final = {
    provider.name: provider
    for provider in (
        Provider("aws", "aws", 110.0),
        Provider("gcp", "gcp", None),
        Provider("azure", "azure", 25.0),
        Provider("slurm", "slurm", None),
        Provider("kubernetes", None, None),
        Provider("skypilot", None, None),
        Provider("dstack", None, None),
        Provider("sagemaker", None, 0.0),
        Provider("vertex", None, 0.0),
        Provider("vast", None, 0.0),
        Provider("runpod", None, 0.0),
    )
}
_RENTED: Final = frozenset({"sagemaker", "vertex", "vast", "runpod"})
"""Who runs containers on machines of others: what the firmware says is not about the container."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where this process runs, and what that means for notices."""

    providers: tuple[str, ...]
    """All that match: a pod may run on a cloud's machine. Empty: nothing is known."""
    sources: tuple[str, ...]
    """Names of the sources to ask, beside signals."""
    grace_s: float
    """Seconds between a notice and the end to plan for. 0: there may be no notice, periodic saves are all there is."""
    limited_by: str
    """What makes that so short."""
    signal_grace_s: float
    """Seconds between a SIGTERM and the end: no more than the launcher gives."""
    advice: str | None
    """What to change, so that the launcher passes signals on and does not cut the grace short. None: nothing."""

    def log(self, sources: Sequence[str]) -> None:
        """Say it, once per job. *sources* are the names of all that are asked, a file or page included."""
        where = ", ".join(self.providers) or "nothing that is known"
        if self.grace_s == 0:
            logger.warning("runs on %s: %s gives no notice that counts, periodic saves only", where, self.limited_by)
        else:
            asked = ", ".join(sources) or "nobody"
            text = "runs on %s; notices by SIGTERM, and asks %s; %.0f s to plan for (%s)"
            logger.info(text, where, asked, self.grace_s, self.limited_by)
        if self.advice is not None:
            logger.warning("%s", self.advice)


def look_around(
    config: SpotConfig,
    *,
    environ: Mapping[str, str] = os.environ,
    dmi: Path = DMI,
    sagemaker_config: Path = SAGEMAKER_CONFIG,
    launcher: Launcher | None = None,
) -> Surroundings:
    """
    Return where this process runs.

    Args:
        config: Its ``grace_seconds`` are for what only the user knows; its ``notice_sources``, if given, are those.
        environ: Environment variables.
        dmi: Folder of the firmware's words.
        sagemaker_config: A file that SageMaker's training containers have.
        launcher: Who started this process. None: its parent.
    """
    grace_s = config.grace_s
    launcher = launcher or parent()
    launcher_timeout_s = timeout_s(environ, launcher)
    names = _by_environment(environ, sagemaker_config)
    if not _RENTED & set(names):
        names += _by_firmware(dmi)
    if environ.get(aws.ENDPOINT_VARIABLE):
        names.append("aws")
    if environ.get(gcp.HOST_VARIABLE):
        names.append("gcp")
    providers = [_PROVIDERS[name] for name in dict.fromkeys(names)]
    found = tuple(each.source for each in providers if each.source is not None)
    sources = found if config.notice_sources == "auto" else tuple(config.notice_sources)
    is_told = bool(sources) or config.notice_file is not None  # by somebody, even where the provider says nothing
    limits = [
        (each.grace_s, each.name)
        for each in providers
        if each.grace_s is not None and (each.grace_s > 0 or not is_told)
    ]
    if len(limits) < len(providers) or not limits:
        limits.append((grace_s, "grace_seconds"))
    if launcher_timeout_s is not None:
        limits.append((launcher_timeout_s, "the launcher's timeout"))
    least, limited_by = min(limits, key=lambda limit: limit[0])
    return Surroundings(
        providers=tuple(each.name for each in providers),
        sources=sources,
        grace_s=least,
        limited_by=limited_by,
        signal_grace_s=grace_s if launcher_timeout_s is None else min(grace_s, launcher_timeout_s),
        advice=advice(environ, launcher, grace_s),
    )


def _by_environment(environ: Mapping[str, str], sagemaker_config: Path) -> list[str]:
    signs = {
        "sagemaker": "SM_TRAINING_ENV" in environ or ("TRAINING_JOB_NAME" in environ and sagemaker_config.exists()),
        "vertex": "CLOUD_ML_JOB_ID" in environ,
        "runpod": "RUNPOD_POD_ID" in environ,
        "vast": "VAST_CONTAINERLABEL" in environ or {"CONTAINER_ID", "CONTAINER_API_KEY"} <= environ.keys(),
        "slurm": "SLURM_JOB_ID" in environ or slurm.END_VARIABLE in environ,
        "kubernetes": "KUBERNETES_SERVICE_HOST" in environ,
        "skypilot": "SKYPILOT_TASK_ID" in environ,
        "dstack": "DSTACK_RUN_ID" in environ,
    }
    return [name for name, holds in signs.items() if holds]


def _by_firmware(dmi: Path) -> list[str]:
    signs = {
        "aws": _word(dmi / "sys_vendor") == "Amazon EC2",
        "gcp": _word(dmi / "product_name").startswith("Google"),
        "azure": _word(dmi / "chassis_asset_tag") == AZURE_TAG,
    }
    return [name for name, holds in signs.items() if holds]


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # no firmware, or a sandbox that hides it
        return ""
