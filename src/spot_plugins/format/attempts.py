"""Attempts of a run: the claim of a number, and the fence against older ones."""

from __future__ import annotations

import logging

from ..errors import StoreError, SupersededError
from ..store import ObjectStore
from .keys import (
    ATTEMPTS_PREFIX,
    STEPS_PREFIX,
    attempt_key,
    parse_attempt_key,
    parse_step_id,
)

logger = logging.getLogger(__name__)


def claim_attempt(store: ObjectStore, description: bytes) -> int:
    """
    Claim the next attempt of the run for this process life, and return its number, counted from 1.

    Call it on one rank only. Of several racing claimants each gets its own number; the highest wins,
    and :func:`commit` refuses for all others. No step has this number yet, either: a mirror may have brought steps
    without the claim of the life that saved them.
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
                "this store has no put-if-absent (%s): two processes that start on one URL in the same "
                "moment cannot be told apart",
                error.reason,
            )
            store.put(attempt_key(attempt), description)
            return attempt
        attempt += 1


def newest_attempt(store: ObjectStore) -> int:
    """Return the highest attempt claimed so far, 0 if none."""
    claimed = (parse_attempt_key(key) for key in store.keys(ATTEMPTS_PREFIX))
    return max((attempt for attempt in claimed if attempt is not None), default=0)


def check_newest(store: ObjectStore, attempt: int) -> None:
    """
    Refuse to go on if another process life has taken over.

    Raises:
        SupersededError: A newer attempt than *attempt* has been claimed.
    """
    if (newest := newest_attempt(store)) > attempt:
        raise SupersededError(attempt, newest)
