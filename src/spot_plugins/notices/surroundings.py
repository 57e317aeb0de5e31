"""
The providers on which this process runs, by environment variables and by the machine's firmware.

No request is made over the network for that. A link-local address without an answer costs seconds, and another service
may use it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import SpotConfig
from ..launch.launcher import Launcher, advice, parent, restart_advice, timeout_s
from . import aws, gcp, slurm

logger = logging.getLogger(__name__)

DMI: Final = Path("/sys/class/dmi/id")
AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
SAGEMAKER_CONFIG: Final = Path("/opt/ml/input/config/resourceconfig.json")


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider, and the notice that it gives a process before its end."""

    name: str
    source: str | None
    """Name of the notice source to poll. None if the provider sends at most a signal."""
    grace_s: float | None
    """Seconds to plan for. None: ``grace_seconds``, because only the user knows the time. 0: there is no notice."""


# Each grace period is a little shorter than the provider promises. See docs/notices.md.
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
"""Providers that run containers on machines of other clouds, so that the firmware says nothing about the container."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The providers on which this process runs, and the notices to expect there."""

    providers: tuple[str, ...]
    """All providers that match. Several may, because a pod runs on the machine of a cloud."""
    sources: tuple[str, ...]
    """Names of the notice sources to poll, beside signals."""
    grace_s: float
    """Seconds to plan for between a notice and the end. 0: there may be no notice, so only periodic saves count."""
    limited_by: str
    """Name of the provider, setting or launcher that limits ``grace_s``."""
    signal_grace_s: float
    """Seconds between a SIGTERM and the end. The launcher may shorten them."""
    advice: Sequence[str]
    """Changes that make the launcher forward signals, wait for the whole grace period and restart its ranks."""

    def summary(self, sources: Sequence[str]) -> str | None:
        """
        Return the providers, who is asked, and the time to plan for. None if there is no notice to plan for.

        *sources* are the names of all notice sources that are polled.
        """
        if self.grace_s == 0:
            return None
        senders = ", ".join(("SIGTERM", *sources))
        grace = f"The grace period is {self.grace_s:.0f} s ({self.limited_by})"
        return f"runs on {self._where}. Notices come from {senders}. {grace}"

    def warn(self) -> None:
        """Log what was found and costs the training something."""
        if self.grace_s == 0:
            logger.warning(
                "runs on %s: %s gives no usable notice, so only periodic saves protect this training",
                self._where,
                self.limited_by,
            )
        for text in self.advice:
            logger.warning("%s", text)

    @property
    def _where(self) -> str:
        return ", ".join(self.providers) or "an unknown provider"


def look_around(
    config: SpotConfig,
    *,
    environ: Mapping[str, str] = os.environ,
    dmi: Path = DMI,
    sagemaker_config: Path = SAGEMAKER_CONFIG,
    launcher: Launcher | None = None,
) -> Surroundings:
    """
    Find out on which providers this process runs, and which notices to expect.

    Args:
        config: The settings. ``grace_seconds`` counts where only the user knows the time. ``notice_sources`` replaces
            the sources that are found, unless it is ``auto``.
        environ: Environment variables.
        dmi: Folder in which the kernel shows the strings of the firmware.
        sagemaker_config: A file that exists in SageMaker's training containers.
        launcher: The process that started this one. None: its parent.
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
    has_source = bool(sources) or config.notice_file is not None  # then a provider without notices is no limit
    limits = [
        (each.grace_s, each.name)
        for each in providers
        if each.grace_s is not None and (each.grace_s > 0 or not has_source)
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
        advice=[*filter(None, (advice(environ, launcher, grace_s), restart_advice(environ)))],
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
    except OSError:  # the machine has no firmware strings, or a sandbox hides them
        return ""
