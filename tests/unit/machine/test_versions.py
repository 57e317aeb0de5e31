"""The comparison of the installed packages with what this release declares."""

from __future__ import annotations

import ast
import logging
import sys
from importlib import metadata

from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.machine import versions
from spot_plugins.session import SpotSession


def test_what_only_the_tests_need_is_not_compared(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['pytest<1; extra == "dev"', "no-such-package>=1"])

    assert versions.installed() == []


def test_without_the_package_that_compares_there_is_no_comparison(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)

    assert versions.installed() == []


def test_a_requirement_that_python_cannot_read_is_not_compared(monkeypatch):
    """Python 3.11 raises SystemError now and then if two threads compile at once. It must not end a training."""
    evaluate = ast.literal_eval

    def literal_eval(text):
        if "3.11" in text:
            raise SystemError("AST constructor recursion depth mismatch (before=78, after=70)")
        return evaluate(text)

    monkeypatch.setattr(ast, "literal_eval", literal_eval)
    texts = ["numpy<1.0; python_version >= '3.11'", "pytest<1; extra == 'all'"]
    monkeypatch.setattr(metadata, "requires", lambda name: texts)

    assert [each.name for each in versions.installed()] == ["pytest"]


def test_a_training_says_at_its_start_which_package_does_not_fit(tmp_path, monkeypatch, caplog):
    """Once, with the command that corrects it. It trains on."""
    monkeypatch.setattr(metadata, "requires", lambda name: ['numpy<1.0; extra == "all"', "fsspec>=1"])
    caplog.set_level(logging.WARNING, "spot_plugins")

    with SpotSession(SpotConfig(url=str(tmp_path), every_steps=1)) as session:
        session.register("model", Holder(1))
        session.resume()
        session.finish(1)

    told = [record.getMessage() for record in caplog.records if "works with" in record.getMessage()]
    assert told == [
        f"numpy {metadata.version('numpy')} is none of the versions that this release works with (<1.0). "
        f"To correct it: pip install 'numpy<1.0'"
    ]
