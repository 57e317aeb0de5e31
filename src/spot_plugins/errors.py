"""
Errors that this package raises on purpose.

SpotError
├── ConfigError                   a setting cannot work; raised before training starts
├── StoreError                    the object store refused, lost or timed out an operation
├── CommitError                   the last step of a training is not known to be stored
├── CorruptCheckpointError        a committed step does not match its manifest
├── IncompatibleCheckpointError   an intact step does not fit this model, run or software
├── NothingToResumeError          there is no committed step
├── SupersededError               a newer attempt of the same run has started
└── UnsafeStateError              a piece of state has no pickle-free form

Preempted is not an error. It is the ``SystemExit`` that ends a process after a notice.
"""

from __future__ import annotations

from typing import Final


class SpotError(Exception):
    """Base class of every error of this package."""


class ConfigError(SpotError):
    """A setting cannot work. The message names the field, its value and the remedy."""


class StoreError(SpotError):
    """
    The object store refused, lost or timed out an operation.

    Attributes:
        operation: The verb that failed: ``put``, ``get``, ``list`` or ``delete``.
        key: Key of the object, relative to the run's URL.
        reason: The cause, with the service's own words if it answered. Never contains credentials.
        retryable: Whether the same call may succeed later.
        may_settle: Whether a refusal that is not retryable may still end by itself within seconds, because a new
            machine, key or role is not known everywhere yet. Only the start of a job waits for that.
    """

    def __init__(self, operation: str, key: str, reason: str, retryable: bool = True, may_settle: bool = False) -> None:
        # Exception gets the fields instead of a message, because pickling calls __init__ with its arguments.
        super().__init__(operation, key, reason, retryable, may_settle)
        self.operation = operation
        self.key = key
        self.reason = reason
        self.retryable = retryable
        self.may_settle = may_settle

    def __str__(self) -> str:
        hint = "it may work later" if self.retryable else "trying again will not help"
        return f"cannot {self.operation} {self.key!r}: {self.reason} ({hint})"


class CommitError(SpotError):
    """
    The last step of a training is not known to be committed. Earlier committed steps are not affected.

    Raised in the training thread by ``finish()``, so that a training whose end is not stored does not end with code 0.

    Attributes:
        step: The last step.
        reason: The cause, and what to do.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"step {self.step} is not known to be committed: {self.reason}. A new start continues from the newest "
            f"committed step."
        )


GONE: Final = "is gone"
"""The reason of a :class:`CorruptCheckpointError` if an object is missing."""


class CorruptCheckpointError(SpotError):
    """
    A committed step does not match its manifest.

    Attributes:
        step: The damaged step.
        key: Store key of the damaged object.
        reason: The mismatch.
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
        step: The step of the checkpoint.
        reason: The mismatch, and what to do about it.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"step {self.step} cannot be loaded here: {self.reason}"


class NothingToResumeError(SpotError):
    """
    No committed step is intact.

    Attributes:
        url: The URL of the run.
        reason: The reason why the stored steps cannot be used.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"nothing to resume from at {self.url}: {self.reason}"


class SupersededError(SpotError):
    """
    A newer attempt of the same run has started. This attempt must not commit or delete anything any more.

    Attributes:
        attempt: The attempt of this process.
        newest: The attempt that took over.
    """

    def __init__(self, attempt: int, newest: int) -> None:
        super().__init__(attempt, newest)
        self.attempt = attempt
        self.newest = newest

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} was superseded by attempt {self.newest}, because another process "
            f"trains this run. Stop one of the two, or give each its own URL."
        )


_ORIGINS: Final = {
    "checkpoint-hooks": "on_save_checkpoint() of the module or a callback",
    "callbacks": "state_dict() of the callback",
    "datamodule": "state_dict() of the data module",
}
"""The method from which a piece of state comes, by the name of its part."""


class UnsafeStateError(SpotError):
    """
    A piece of state has no pickle-free form, so it cannot be saved.

    Attributes:
        path: The path to the piece, for example ``callbacks/MyCallback/best``.
        type_name: The type of the piece.
    """

    def __init__(self, path: str, type_name: str) -> None:
        super().__init__(path, type_name)
        self.path = path
        self.type_name = type_name

    def __str__(self) -> str:
        first = self.path.partition("/")[0]
        return (
            f"state {self.path!r} is a {self.type_name}, which cannot be saved without pickle. "
            f"Return tensors, arrays, numbers, strings, or dicts and lists of them from "
            f"{_ORIGINS.get(first, 'its state_dict()')}."
        )


class Preempted(SystemExit):
    """
    Exit of a process after a notice, with code 143. Raised in the training thread after the last save.

    The code is 128 + SIGTERM. Schedulers take it for a terminated job, and run the job again.

    Attributes:
        step: The last step that was saved. None if nothing was saved.
    """

    EXIT_CODE = 143

    def __init__(self, step: int | None) -> None:
        super().__init__(self.EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        saved = "nothing was saved" if self.step is None else f"step {self.step} is saved"
        return f"preempted: {saved}; run the same command again to continue"
