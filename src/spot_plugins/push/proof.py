"""Proof that the pusher process can use the store, before the attempt is claimed. Runs in that process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import ConfigError, StoreError
from ..store import open_store, probe, put_speed
from .messages import Channel, PushSettings


def serve_proofs(channel: Channel, settings: PushSettings) -> PushSettings | None:
    """
    Prove the store each time that the trainer asks, until it sends the number of the attempt.

    The process that will write to the store proves it, because it may find other credentials, packages or certificates
    than the trainer. The trainer waits between two proofs, and decides how often it asks.

    Returns:
        *settings* with the attempt. None if the trainer is gone.
    """
    while not settings.attempt:
        try:
            body, _ = channel.receive()
            if body == {"prove": True}:
                channel.send({"proof": _prove(settings)})
            else:
                settings = replace(settings, attempt=body["attempt"])
        except (EOFError, OSError):
            return None
    return settings


def _prove(settings: PushSettings) -> dict[str, Any]:
    """Return the speed of a put, or the fields of the error with which the store refuses, by the name of its class."""
    try:
        store = open_store(settings.url, settings.storage_options)
        probe(store)
    except StoreError as error:
        return {"StoreError": error.args}
    except ConfigError as error:
        return {"ConfigError": error.args}
    return {"put_bytes_per_s": put_speed(store)}
