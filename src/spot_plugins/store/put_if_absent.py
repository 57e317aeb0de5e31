"""Put-if-absent on a server that may ignore the condition."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import StoreError


class ConditionalPuts:
    """
    Put-if-absent that trusts the server only after it has refused a put.

    Some servers accept the condition and ignore it. This is found out only by a second put that succeeds although the
    object exists. Therefore the first object that is created is written twice.
    """

    def __init__(self) -> None:
        self._refuses_second_create = False

    def put(self, key: str, create: Callable[[], bool]) -> bool:
        """
        Call *create*, which returns whether it wrote the object *key*. Return the same.

        Raises:
            StoreError: With ``retryable=False`` if the server has no put-if-absent.
        """
        if not create():
            return False
        if not self._refuses_second_create and create():
            reason = "the server has no put-if-absent: it accepts If-None-Match and ignores it"
            raise StoreError("put", key, reason, retryable=False)
        self._refuses_second_create = True
        return True
