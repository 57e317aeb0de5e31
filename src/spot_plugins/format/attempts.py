"""Attempts of a run: the claim of a number, and the check that refuses older attempts."""

from __future__ import annotations

import logging
from typing import Final

from ..errors import StoreError, SupersededError
from ..store import ObjectStore, get_at_most
from .keys import (
    ATTEMPTS_PREFIX,
    STEPS_PREFIX,
    attempt_key,
    parse_attempt_key,
    parse_step_id,
)

MAX_CLAIM_BYTES: Final = 64 * 1024
"""Largest description of an attempt that is read. Ours have less than 1 KB."""

logger = logging.getLogger(__name__)


def claim_attempt(store: ObjectStore, description: bytes) -> int:
    """
    Claim the next attempt of the run for this start of the training. Return its number, counted from 1.

    Call it on one rank only. If several starts claim at once, each gets a number of its own. The highest number wins,
    and :func:`~spot_plugins.format.commit.commit` refuses all others.

    The number is also above the attempts of all stored steps, because a mirror may have copied steps without the claim
    of their attempt.
    """
    saved = (parse_step_id(key) for key in store.keys(STEPS_PREFIX))
    attempt = 1 + max([newest_attempt(store), *(step_id.attempt for step_id in saved if step_id is not None)])
    while True:
        try:
            if store.put_if_absent(attempt_key(attempt), description):
                return attempt
        except StoreError as error:
            if error.retryable:
                raise
            logger.warning(
                "the store has no put-if-absent (%s): two processes that start on one URL at the same moment get the "
                "same attempt, and overwrite each other's steps. Start only one",
                error.reason,
            )
            store.put(attempt_key(attempt), description)
            return attempt
        attempt += 1


def read_claim(store: ObjectStore, attempt: int) -> bytes:
    """
    Return the description with which *attempt* was claimed.

    Raises:
        KeyError: The attempt has no claim.
        ValueError: The claim has more than :data:`MAX_CLAIM_BYTES`.
        StoreError: The store does not answer.
    """
    return get_at_most(store, attempt_key(attempt), MAX_CLAIM_BYTES)


def newest_attempt(store: ObjectStore) -> int:
    """Return the highest attempt that has been claimed, or 0 if there is none."""
    claimed = (parse_attempt_key(key) for key in store.keys(ATTEMPTS_PREFIX))
    return max((attempt for attempt in claimed if attempt is not None), default=0)


def check_newest(store: ObjectStore, attempt: int) -> None:
    """
    Check that no attempt after *attempt* has been claimed.

    Raises:
        SupersededError: A newer attempt has been claimed.
    """
    if (newest := newest_attempt(store)) > attempt:
        raise SupersededError(attempt, newest)
