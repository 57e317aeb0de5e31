"""Offers as metrics for Prometheus, in a text file for node_exporter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from .base import Offer

PRICE: Final = "spot_offer_dollars_per_gpu_hour"
AVAILABLE: Final = "spot_offer_available"
LIMIT: Final = "spot_offer_limit_dollars_per_gpu_hour"
_LABELS: Final = ("provider", "gpu", "region", "instance", "kind")


def write_offers(directory: str, gpu: str, offers: Sequence[Offer], limit: float | None) -> None:
    """
    Replace the file of *gpu* in *directory*, ``spot-offers-GPU.prom``.

    Args:
        directory: The directory of the textfile collector.
        gpu: The GPU that was asked for, as in :class:`.Query`.
        offers: The offers. If several have the same labels, the cheapest one counts.
        limit: The price of ``--below``, or None.

    Raises:
        OSError: The file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile  # an extra, which most do not need

    registry = CollectorRegistry()
    price = Gauge(PRICE, "Price per GPU and hour", _LABELS, registry=registry)
    available = Gauge(AVAILABLE, "1 if a live source has the offer, 0 for a price list", _LABELS, registry=registry)
    for offer in sorted(offers, key=lambda offer: -offer.per_gpu_hour):
        labels = (offer.provider, offer.gpu, offer.region, offer.instance, offer.kind)
        price.labels(*labels).set(offer.per_gpu_hour)
        available.labels(*labels).set(offer.is_live)
    if limit is not None:
        limits = Gauge(LIMIT, "Price of --below", ["gpu"], registry=registry)
        for name in {gpu, *(offer.gpu for offer in offers)}:
            limits.labels(name).set(limit)
    write_to_textfile(os.path.join(directory, f"spot-offers-{gpu}.prom"), registry)
