"""Settings that cannot work are told before anything starts, and what to do about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spot_plugins.config import DEFAULT_GRACE_S, SpotConfig, from_environment
from spot_plugins.errors import ConfigError

GOOD = {"url": "s3://bucket/run", "every_steps": 100}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SPOT_")]:
        monkeypatch.delenv(name)


def test_good_settings_are_taken_as_they_are():
    """
    All fields, and the defaults of those that are left out.
    """
    config = SpotConfig(**GOOD)

    assert (config.url, config.every_steps, config.every_seconds) == ("s3://bucket/run", 100, None)
    assert (config.grace_seconds, config.keep_last, config.keep_every, config.local_dir) == (
        DEFAULT_GRACE_S,
        2,
        None,
        None,
    )
    assert config.on_notice == "leave"
    assert SpotConfig(url="x", every_seconds=0.5).every_seconds == 0.5
    assert SpotConfig(url="x", every_seconds="auto").every_seconds == "auto"


@pytest.mark.parametrize(
    ("bad", "field", "value", "remedy"),
    [
        ({"url": ""}, "url", "''", "give one, such as s3://bucket/run"),
        ({"url": Path("/data/run")}, "url", "PosixPath", "must be a string"),
        ({"url": None}, "url", "None", "must be a string"),
        ({"every_steps": None}, "every_steps=None and every_seconds", "None", "Set at least one"),
        ({"every_steps": 0}, "every_steps", "0", "at least 1"),
        ({"every_steps": -5}, "every_steps", "-5", "at least 1"),
        ({"every_steps": 2.5}, "every_steps", "2.5", "a whole number"),
        ({"every_steps": "100"}, "every_steps", "'100'", "a whole number"),
        ({"every_steps": True}, "every_steps", "True", "a whole number"),
        ({"every_seconds": 0}, "every_seconds", "0", "above 0"),
        ({"every_seconds": -1.5}, "every_seconds", "-1.5", "above 0"),
        ({"every_seconds": float("nan")}, "every_seconds", "nan", "above 0"),
        ({"every_seconds": "often"}, "every_seconds", "'often'", "a number of seconds, or 'auto'"),
        ({"grace_seconds": 0}, "grace_seconds", "0", "above 0"),
        ({"grace_seconds": float("inf")}, "grace_seconds", "inf", "finite"),
        ({"grace_seconds": None}, "grace_seconds", "None", "a number"),
        ({"on_notice": "stay"}, "on_notice", "'stay'", "must be 'leave' or 'continue'"),
        ({"on_notice": None}, "on_notice", "None", "must be 'leave' or 'continue'"),
        ({"notice_sources": "aws"}, "notice_sources", "'aws'", "names of aws, gcp, azure, slurm"),
        ({"notice_sources": ["ec2"]}, "notice_sources", "['ec2']", "names of aws, gcp, azure, slurm"),
        ({"notice_sources": None}, "notice_sources", "None", "must be 'auto' or names"),
        ({"notice_file": ""}, "notice_file", "''", "give a path, or None"),
        ({"notice_file": Path("/notice")}, "notice_file", "PosixPath", "must be a string"),
        ({"acknowledge_notice": 1}, "acknowledge_notice", "1", "must be True or False"),
        ({"keep_last": 0}, "keep_last", "0", "at least 1"),
        ({"keep_last": None}, "keep_last", "None", "a whole number"),
        ({"keep_every": 0}, "keep_every", "0", "at least 1"),
        ({"local_dir": Path("/nvme")}, "local_dir", "PosixPath", "must be a string"),
        ({"local_dir_survives": "yes"}, "local_dir_survives", "'yes'", "must be True or False"),
        ({"elastic_batch": "half"}, "elastic_batch", "'half'", "'keep' or 'scale'"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_told_with_field_value_and_remedy(bad, field, value, remedy):
    """
    Each one fails alone, when the settings are made, with a message that says what to change.
    """
    with pytest.raises(ConfigError) as caught:
        SpotConfig(**{**GOOD, **bad})

    assert field in str(caught.value)
    assert value in str(caught.value)
    assert remedy in str(caught.value)


VARIABLES = {
    "url": ("gs://other/run", "gs://other/run"),
    "every_steps": ("7", 7),
    "every_seconds": ("1.5", 1.5),
    "grace_seconds": ("110", 110.0),
    "on_notice": ("continue", "continue"),
    "notice_sources": ("aws, slurm", ("aws", "slurm")),
    "notice_file": ("/run/notice", "/run/notice"),
    "acknowledge_notice": ("true", True),
    "keep_last": ("5", 5),
    "keep_every": ("1000", 1000),
    "local_dir": ("/nvme/spot", "/nvme/spot"),
    "local_dir_survives": ("true", True),
    "elastic_batch": ("scale", "scale"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_fills_in_and_never_overrides(name, monkeypatch):
    """
    SPOT_<NAME> stands for a setting that is missing or None, and is ignored when the setting is given.
    """
    text, value = VARIABLES[name]
    others = {key: given for key, (_, given) in VARIABLES.items() if key != name}
    explicit = {
        "url": "s3://mine",
        "local_dir": "/mine",
        "local_dir_survives": False,
        "acknowledge_notice": False,
        "on_notice": "leave",
        "notice_sources": "auto",
        "notice_file": "/mine",
        "elastic_batch": "keep",
    }.get(name, 3)
    monkeypatch.setenv(f"SPOT_{name.upper()}", text)

    assert getattr(from_environment(**others), name) == value
    assert getattr(from_environment(**others, **{name: None}), name) == value
    assert getattr(from_environment(**others, **{name: explicit}), name) == explicit


@pytest.mark.parametrize(("text", "sources"), [("auto", "auto"), ("none", ()), ("gcp", ("gcp",))])
def test_the_sources_of_notices_in_a_variable(text, sources, monkeypatch):
    """
    Two words have a meaning of their own; all else are names.
    """
    monkeypatch.setenv("SPOT_NOTICE_SOURCES", text)

    assert from_environment(**GOOD).notice_sources == sources


def test_all_settings_can_come_from_the_environment(monkeypatch):
    """
    Without any argument; an empty variable counts as missing.
    """
    for name, (text, _) in VARIABLES.items():
        monkeypatch.setenv(f"SPOT_{name.upper()}", text)
    monkeypatch.setenv("SPOT_KEEP_EVERY", "")

    config = from_environment()

    assert {name: getattr(config, name) for name in VARIABLES} == {
        name: None if name == "keep_every" else value for name, (_, value) in VARIABLES.items()
    }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("SPOT_EVERY_STEPS", "often", "not a whole number"),
        ("SPOT_EVERY_STEPS", "1.5", "not a whole number"),
        ("SPOT_EVERY_SECONDS", "5 min", "not a number, or 'auto'"),
        ("SPOT_EVERY_STEPS", "0", "at least 1"),
    ],
)
def test_a_bad_variable_is_named(name, text, says, monkeypatch):
    """
    The message names the variable, or the setting that it stands for, and its value.
    """
    monkeypatch.setenv(name, text)

    with pytest.raises(ConfigError) as caught:
        from_environment(url="s3://bucket/run")

    assert name.removeprefix("SPOT_") in str(caught.value).upper()
    assert text in str(caught.value)
    assert says in str(caught.value)


def test_the_variable_of_seconds_may_say_auto(monkeypatch):
    """
    The one duration that may also be a word.
    """
    monkeypatch.setenv("SPOT_EVERY_SECONDS", "auto")

    assert from_environment(url="s3://bucket/run").every_seconds == "auto"


def test_without_a_url_it_says_where_to_give_one():
    """
    The one setting that has no default.
    """
    with pytest.raises(ConfigError, match=r"url is missing.*SPOT_URL"):
        from_environment(every_steps=5)


def test_settings_are_printed_without_secrets():
    """
    Neither storage options nor the user part and the query of a URL show up in what may end in a log.
    """
    config = SpotConfig(
        url="sftp://me:hidden-one@host/run?sig=hidden-two",
        every_steps=5,
        storage_options={"key": "hidden-three", "client_kwargs": {"secret": "hidden-four"}},
    )

    for text in (repr(config), str(config), f"{config}"):
        assert "hidden" not in text
        assert "host/run" in text
        assert "every_steps=5" in text
