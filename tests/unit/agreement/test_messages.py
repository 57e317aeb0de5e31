"""The notes of the agreement: what is sent comes back, and nothing else is taken for a note."""

from __future__ import annotations

import json

import pytest

from spot_plugins.agreement import Notice
from spot_plugins.agreement.messages import (
    GoodbyeMessage,
    LeaveMessage,
    NoticeMessage,
    ProposalMessage,
    SoonMessage,
    decode_boundary,
    decode_message,
    decode_proposal_answer,
    decode_proposal_verdict,
    encode_message,
)
from spot_plugins.ranks import BoardNonsenseError

NOTICE = {"kind": "notice", "source": "AWS", "left_s": 120.0, "margin_s": 3.0, "at_once": False}
PROPOSAL = {"kind": "proposal", "boundary": 3, "trigger": "steps"}
ANYTHING = [None, True, 0.5, -1, "", "nonsense", [], [1], {}, {"kind": None}]


@pytest.mark.parametrize(
    "message",
    [
        ProposalMessage(boundary=7, trigger="notice"),
        NoticeMessage(source="SIGTERM", left_s=-0.5, margin_s=0.0, at_once=True),
        LeaveMessage(),
        SoonMessage(),
        GoodbyeMessage(),
    ],
)
def test_a_message_comes_through_a_board_as_it_was_sent(message):
    assert decode_message(json.loads(json.dumps(encode_message(message)))) == message


def test_a_notice_keeps_the_time_that_is_left_on_another_clock():
    """The monotonic clocks of two machines have nothing in common."""
    message = NoticeMessage.of(Notice("AWS", 1120.0, 3.0, at_once=False), now=1000.0)

    assert message.notice(now=5.0) == Notice("AWS", 125.0, 3.0, at_once=False)


@pytest.mark.parametrize(
    "note",
    [
        *ANYTHING,
        7,
        {"kind": "unknown"},
        {"kind": ["leave"]},
        *({**NOTICE, key: value} for key in ("source", "left_s", "margin_s", "at_once") for value in (None, [])),
        {**NOTICE, "left_s": float("nan")},
        {**NOTICE, "left_s": float("inf")},
        {**NOTICE, "left_s": 10**400},
        {**NOTICE, "left_s": True},
        *({**PROPOSAL, "boundary": value} for value in (None, True, -1, 1.5, "3")),
        *({**PROPOSAL, "trigger": value} for value in (None, "end", ["steps"])),
    ],
    ids=repr,
)
def test_nonsense_is_no_message(note):
    with pytest.raises(BoardNonsenseError):
        decode_message(note)


@pytest.mark.parametrize("decode", [decode_boundary, decode_proposal_answer, decode_proposal_verdict])
@pytest.mark.parametrize("note", ANYTHING, ids=repr)
def test_nonsense_is_no_answer_and_no_verdict(decode, note):
    with pytest.raises(BoardNonsenseError):
        decode(note)


def test_an_error_shows_no_more_than_the_beginning_of_a_note():
    """A stranger chooses how long a note is."""
    with pytest.raises(BoardNonsenseError) as raised:
        decode_message("x" * 10_000)

    assert len(str(raised.value)) < 300
