"""The result of a drill as text, JSON, JUnit's XML and a page, with texts that nobody may trust."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from spot_plugins.drill.lives import Run
from spot_plugins.drill.page import page_of
from spot_plugins.drill.runner import Facts, Options
from spot_plugins.drill.text import document_of, junit_of, text_of
from spot_plugins.drill.verdict import Promise, Verdict

EVIL = "<script>alert(1)</script> & \x1b[2J\x00"


def verdict(*promises, words=()):
    control = Run(lives=(), url="", words=())
    facts = Facts(command=("python", EVIL), options=Options(), control=control, pace=None, rehearsal=None)
    return Verdict(facts=facts, promises=promises, figures=(), words=words)


KEPT, BROKEN = Promise("it ends", True, EVIL), Promise(f"it resumes {EVIL}", False, EVIL)


def test_the_first_broken_promise_is_the_result():
    """In all forms. Those after it are listed."""
    made = verdict(KEPT, BROKEN, Promise("more", False, "later"), words=(EVIL,))
    assert not made.is_kept
    assert made.first_broken == BROKEN
    assert text_of(made).splitlines()[-1].startswith("A promise was broken. it resumes <script>")
    document = json.loads(json.dumps(document_of(made)))
    assert document["first_broken"]["name"] == BROKEN.name
    assert [each["is_kept"] for each in document["promises"]] == [True, False, False]


def test_a_good_drill_has_no_failure():
    made = verdict(KEPT)
    assert made.is_kept
    assert text_of(made).endswith("All promises were kept.")
    assert document_of(made)["first_broken"] is None
    assert ElementTree.fromstring(junit_of(made)).get("failures") == "0"


@pytest.mark.parametrize("form", [text_of, junit_of, page_of])
def test_no_text_controls_a_terminal_or_a_page(form):
    """Names of tensors and errors come from a program."""
    text = form(verdict(KEPT, BROKEN, words=(EVIL,)))
    assert "\x1b" not in text
    assert "\x00" not in text
    if form is not text_of:
        assert "<script" not in text
    if form is junit_of:
        (suite,) = [ElementTree.fromstring(text)]
        assert [len(case.findall("failure")) for case in suite] == [0, 1]
