"""
Everything this package raises on purpose.

SpotError
├── ConfigError                   a setting cannot work; raised before training starts
├── StoreError                    the object store refused, lost or timed out an operation
├── CommitError                   a step is not known to be visible; earlier ones are
├── CorruptCheckpointError        a committed step does not match its manifest
├── IncompatibleCheckpointError   an intact step does not fit this model, run or software
├── NothingToResumeError          there is no committed step
├── SupersededError               a newer attempt of the same run has started
└── UnsafeStateError              a piece of state has no pickle-free form

Preempted is not an error: it is the ``SystemExit`` with which a notified process leaves.
"""

from __future__ import annotations

from typing import Final


class SpotError(Exception):
    """Base of every error of this package."""


class ConfigError(SpotError):
    """A setting cannot work. The message names the field, its value and the remedy."""


class StoreError(SpotError):
    """
    The object store refused, lost or timed out an operation.

    Attributes:
        operation: The verb that failed: ``put``, ``get``, ``keys``, ``delete`` or ``open``.
        key: Key of the object, relative to the run's URL.
        reason: What the service said. Never contains credentials.
        retryable: Whether the same call may succeed later.
    """

    def __init__(self, operation: str, key: str, reason: str, retryable: bool = True) -> None:
        # Fields, not a message, go to Exception: they must survive pickling.
        super().__init__(operation, key, reason, retryable)
        self.operation = operation
        self.key = key
        self.reason = reason
        self.retryable = retryable

    def __str__(self) -> str:
        hint = "it may work later" if self.retryable else "trying again will not help"
        return f"cannot {self.operation} {self.key!r}: {self.reason} ({hint})"


class CommitError(SpotError):
    """
    A step is not known to be visible; earlier ones are.

    Attributes:
        step: The step whose commit is unknown.
        reason: What stood in the way.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step} is not known to be committed: {self.reason}"


GONE: Final = "is gone"
"""The reason of a :class:`CorruptCheckpointError` where an object is missing."""


class CorruptCheckpointError(SpotError):
    """
    A committed step does not match its manifest.

    Attributes:
        step: The damaged step.
        key: Store key of the damaged object.
        reason: What does not match.
    """

    def __init__(self, step: int, key: str, reason: str) -> None:
        super().__init__(step, key, reason)
        self.step = step
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step} is damaged: {self.key} {self.reason}. An earlier step is needed."


class IncompatibleCheckpointError(SpotError):
    """
    An intact checkpoint does not fit this model, this run or this software.

    Attributes:
        step: The step that was tried.
        reason: What does not fit, and what to do about it.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step} cannot be loaded here: {self.reason}"


class NothingToResumeError(SpotError):
    """
    There is no committed and intact step.

    Attributes:
        url: Where it was looked for.
        reason: Why what is there cannot be used.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"nothing to resume from at {self.url}: {self.reason}"


class SupersededError(SpotError):
    """
    A newer attempt of the same run has started; this one must write nothing that a reader sees.

    Attributes:
        attempt: This process life.
        newest: The one that took over.
    """

    def __init__(self, attempt: int, newest: int) -> None:
        super().__init__(attempt, newest)
        self.attempt = attempt
        self.newest = newest

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} was superseded by attempt {self.newest}: another process "
            f"trains this run. Stop one of the two, or give each its own URL."
        )


class UnsafeStateError(SpotError):
    """
    A piece of state has no pickle-free form, so it cannot be saved.

    Attributes:
        path: Where it is, for example ``callbacks/MyCallback/best``.
        type_name: Its type.
    """

    def __init__(self, path: str, type_name: str) -> None:
        super().__init__(path, type_name)
        self.path = path
        self.type_name = type_name

    def __str__(self) -> str:
        return (
            f"state {self.path!r} is a {self.type_name}, which cannot be saved without pickle. "
            f"Return tensors, arrays, numbers, strings, or dicts and lists of them from its "
            f"state_dict()."
        )


class Preempted(SystemExit):
    """
    Raised in the training thread once all is safe after a notice. Ends the process with code 143.

    143 is 128 + SIGTERM: what schedulers take for "terminated, run me again".

    Attributes:
        step: Last step that was saved, or None when nothing could be saved.
    """

    EXIT_CODE = 143

    def __init__(self, step: int | None) -> None:
        super().__init__(self.EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        saved = "nothing was saved" if self.step is None else f"step {self.step} is saved"
        return f"preempted: {saved}; run the same command again to go on"
