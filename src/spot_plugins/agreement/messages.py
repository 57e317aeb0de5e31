"""
The notes by which the ranks agree, as values, and their form on the board.

The board carries JSON, and whoever reaches its port can write to it. So every note is checked when it is read. A note
that does not decode raises :exc:`~spot_plugins.ranks.BoardNonsenseError`, and its reader treats the board as lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

from ..ranks import BoardNonsenseError, Json
from ..schedule import AgreedReason
from .notice import Notice

ProposalAnswer = Literal["ready", "busy", "late"]
"""The answer of one rank to a proposal. ``late``: the rank has passed the boundary."""

ProposalVerdict = Literal["save", "defer", "late"]
"""The answer of all ranks to a proposal, counted by rank 0."""

VOID: Final[Json] = None
"""A verdict that does not decode. Rank 0 posts it after nonsense answers, so that no rank waits for a verdict."""

MAX_SHOWN: Final = 200  # characters of a note in an error; a stranger chooses its length
MAX_S: Final = 1e9  # no notice comes 30 years before its deadline


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalMessage:
    """Rank 0 proposes to save at a boundary. Every rank answers with a :data:`ProposalAnswer`."""

    boundary: int
    trigger: AgreedReason


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeMessage:
    """
    The machine of the sender will be taken.

    Every rank answers a notice that is to be obeyed at once with a boundary, and any other with its measurements.
    """

    source: str
    left_s: float
    """Seconds until the deadline. The monotonic clocks of two machines have nothing in common."""
    margin_s: float
    at_once: bool

    @classmethod
    def of(cls, notice: Notice, now: float) -> NoticeMessage:
        """Return the message about *notice* that is sent at *now* (monotonic)."""
        return cls(
            source=notice.source,
            left_s=notice.deadline - now,
            margin_s=notice.margin_s,
            at_once=notice.at_once,
        )

    def notice(self, now: float) -> Notice:
        """Return the notice as the rank that reads it at *now* (monotonic) knows it."""
        return Notice(self.source, now + self.left_s, self.margin_s, self.at_once)


@dataclass(frozen=True, slots=True)
class LeaveMessage:
    """Rank 0 calls all ranks to leave, because of a notice that left time until now. Answered with a boundary."""


@dataclass(frozen=True, slots=True)
class SoonMessage:
    """A rank asks for a save at one of the next boundaries. Not answered."""


@dataclass(frozen=True, slots=True)
class GoodbyeMessage:
    """A rank stops taking part. It wakes that rank's own thread. Not answered."""


Message: TypeAlias = "ProposalMessage | NoticeMessage | LeaveMessage | SoonMessage | GoodbyeMessage"

_KINDS: Final[dict[type[Message], str]] = {
    ProposalMessage: "proposal",
    NoticeMessage: "notice",
    LeaveMessage: "leave",
    SoonMessage: "soon",
    GoodbyeMessage: "goodbye",
}


def encode_message(message: Message) -> Json:
    """Return the form of *message* on the board."""
    return {"kind": _KINDS[type(message)], **asdict(message)}


def decode_message(note: Json) -> Message:
    """
    Return the message that *note* is.

    Raises:
        BoardNonsenseError: It is none.
    """
    if not isinstance(note, dict):
        raise _nonsense("a message", note)
    match note.get("kind"):
        case "proposal":
            trigger = _word(note, "trigger", get_args(AgreedReason))
            return ProposalMessage(
                boundary=decode_boundary(note.get("boundary")), trigger=cast("AgreedReason", trigger)
            )
        case "notice":
            return NoticeMessage(
                source=_typed(note, "source", str),
                left_s=_seconds(note, "left_s"),
                margin_s=_seconds(note, "margin_s"),
                at_once=_typed(note, "at_once", bool),
            )
        case "leave":
            return LeaveMessage()
        case "soon":
            return SoonMessage()
        case "goodbye":
            return GoodbyeMessage()
    raise _nonsense("a message", note)


def decode_boundary(note: Json) -> int:
    """
    Return the boundary that *note* is: an answer to a notice, or the verdict about it.

    Raises:
        BoardNonsenseError: It is none.
    """
    if type(note) is int and note >= 0:  # a pause before the first step is at boundary 0
        return note
    raise _nonsense("a boundary", note)


def decode_proposal_answer(note: Json) -> ProposalAnswer:
    """
    Return the answer to a proposal that *note* is.

    Raises:
        BoardNonsenseError: It is none.
    """
    if note in get_args(ProposalAnswer):
        return cast("ProposalAnswer", note)
    raise _nonsense("an answer to a proposal", note)


def decode_proposal_verdict(note: Json) -> ProposalVerdict:
    """
    Return the verdict about a proposal that *note* is.

    Raises:
        BoardNonsenseError: It is none.
    """
    if note in get_args(ProposalVerdict):
        return cast("ProposalVerdict", note)
    raise _nonsense("a verdict about a proposal", note)


Value = TypeVar("Value")


def _typed(note: Mapping[str, Json], key: str, kind: type[Value]) -> Value:
    value: Any = note.get(key)
    if not isinstance(value, kind):
        raise _nonsense(f"a message with {key}", note)
    return value


def _seconds(note: Mapping[str, Json], key: str) -> float:
    value: Any = note.get(key)
    if type(value) not in (int, float) or not abs(value) <= MAX_S:  # also not a number
        raise _nonsense(f"a message with {key}", note)
    return float(value)


def _word(note: Mapping[str, Json], key: str, words: tuple[str, ...]) -> str:
    value: Any = note.get(key)
    if value not in words:
        raise _nonsense(f"a message with {key}", note)
    return cast("str", value)


def _nonsense(expected: str, note: object) -> BoardNonsenseError:
    return BoardNonsenseError(f"{repr(note)[:MAX_SHOWN]} is not {expected}")
