"""Put-if-absent over a server that may not mean it."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import StoreError


class ConditionalPuts:
    """
    Trusts a server's put-if-absent only once it has refused one.

    Some servers take the condition and ignore it, and only a second put that they do not refuse shows it. So
    the first object that is written so is written twice.
    """

    def __init__(self) -> None:
        self._refuses_second_create = False

    def put(self, key: str, create: Callable[[], bool]) -> bool:
        """
        Return whether *create* wrote the object *key*; it returns False where there was one.

        Raises:
            StoreError: With ``retryable=False`` if the server has no such operation.
        """
        if not create():
            return False
        if not self._refuses_second_create and create():
            reason = "the server has no put-if-absent: it accepts If-None-Match and ignores it"
            raise StoreError("put", key, reason, retryable=False)
        self._refuses_second_create = True
        return True
