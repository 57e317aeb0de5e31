"""Settings that cannot work are told before anything starts, and what to do about them."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path

import pytest

from spot_plugins.config import DEFAULT_GRACE_S, SETTINGS, SpotConfig, from_environment
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


def test_the_table_is_the_class():
    """
    Each field of the settings is a row, in the same order, with the field's own default.
    """
    by_name = {field.name: field for field in fields(SpotConfig)}

    assert [setting.name for setting in SETTINGS] == list(by_name)
    assert [setting.type for setting in SETTINGS] == [field.type for field in by_name.values()]
    assert {setting.name for setting in SETTINGS if setting.default is MISSING} == {"url"}
    defaults = SpotConfig(**GOOD)
    for setting in SETTINGS:
        assert setting.name in GOOD or getattr(defaults, setting.name) == setting.default


def test_settings_cannot_be_changed_or_given_by_position():
    """
    What was checked stays what was checked.
    """
    config = SpotConfig(**GOOD)

    with pytest.raises(FrozenInstanceError):
        config.keep_last = 0
    with pytest.raises(TypeError):
        SpotConfig("s3://bucket/run", 100)


@pytest.mark.parametrize(
    ("given", "seconds"), [(300, 300.0), (0.5, 0.5), (timedelta(minutes=5), 300.0), (timedelta(milliseconds=1), 0.001)]
)
def test_a_duration_is_a_number_or_a_timedelta(given, seconds):
    """
    Both settings that are durations are floats afterwards, in seconds.
    """
    config = SpotConfig(url="x", every_seconds=given, grace_seconds=given)

    for kept in (config.every_seconds, config.every_s, config.grace_seconds, config.grace_s):
        assert kept == seconds
        assert type(kept) is float


def test_an_interval_may_be_missing_or_automatic():
    """
    The interval in seconds is then the same word, or None.
    """
    assert SpotConfig(url="x", every_seconds="auto").every_s == "auto"
    assert SpotConfig(url="x", every_steps=1).every_s is None


BAD = [
    ("url", "", "''", "names no place: give one, such as s3://bucket/run"),
    ("url", Path("/data/run"), "PosixPath", "must be a string, such as 's3://bucket/run'"),
    ("url", None, "None", "must be a string"),
    ("url", b"s3://bucket/run", "b's3", "must be a string"),
    ("every_steps", 0, "0", "must be at least 1"),
    ("every_steps", -5, "-5", "at least 1"),
    ("every_steps", 2.5, "2.5", "must be a whole number"),
    ("every_steps", "100", "'100'", "a whole number"),
    ("every_steps", "", "''", "a whole number"),
    ("every_steps", True, "True", "a whole number"),
    ("every_steps", math.nan, "nan", "a whole number"),
    ("every_seconds", 0, "0", "above 0"),
    ("every_seconds", -1.5, "-1.5", "above 0"),
    ("every_seconds", math.nan, "nan", "above 0"),
    ("every_seconds", math.inf, "inf", "finite"),
    ("every_seconds", 10**400, "1000", "finite"),
    ("every_seconds", True, "True", "a timedelta, a number of seconds, or 'auto'"),
    ("every_seconds", "often", "'often'", "a number of seconds, or 'auto'"),
    ("every_seconds", "", "''", "a number of seconds, or 'auto'"),
    ("every_seconds", timedelta(0), "datetime.timedelta(0)", "above 0"),
    ("every_seconds", timedelta(seconds=-1), "datetime.timedelta(days=-1", "above 0"),
    ("grace_seconds", 0, "0", "above 0"),
    ("grace_seconds", math.inf, "inf", "finite"),
    ("grace_seconds", math.nan, "nan", "above 0"),
    ("grace_seconds", None, "None", "a number"),
    ("grace_seconds", "30", "'30'", "a timedelta or a number of seconds"),
    ("grace_seconds", "auto", "'auto'", "a timedelta or a number of seconds"),
    ("grace_seconds", False, "False", "a timedelta or a number of seconds"),
    ("grace_seconds", timedelta(0), "datetime.timedelta(0)", "above 0"),
    ("on_notice", "stay", "'stay'", "must be 'leave' or 'continue'"),
    ("on_notice", "", "''", "must be 'leave' or 'continue'"),
    ("on_notice", None, "None", "must be 'leave' or 'continue'"),
    ("on_notice", ["leave"], "['leave']", "must be 'leave' or 'continue'"),
    ("notice_sources", "aws", "'aws'", "names of aws, gcp, azure, slurm"),
    ("notice_sources", "", "''", "names of aws, gcp, azure, slurm"),
    ("notice_sources", ["ec2"], "['ec2']", "names of aws, gcp, azure, slurm"),
    ("notice_sources", [["aws"]], "[['aws']]", "names of aws, gcp, azure, slurm"),
    ("notice_sources", True, "True", "names of aws, gcp, azure, slurm"),
    ("notice_sources", None, "None", "must be 'auto' or names"),
    ("notice_file", "", "''", "names no file: give a path, or None"),
    ("notice_file", Path("/notice"), "PosixPath", "must be a string"),
    ("acknowledge_notice", 1, "1", "must be True or False"),
    ("acknowledge_notice", None, "None", "must be True or False"),
    ("compile_cache", 1, "1", "must be True or False"),
    ("keep_last", 0, "0", "at least 1"),
    ("keep_last", None, "None", "a whole number"),
    ("keep_last", True, "True", "a whole number"),
    ("keep_every", 0, "0", "at least 1"),
    ("keep_every", 10.0, "10.0", "a whole number"),
    ("local_dir", Path("/nvme"), "PosixPath", "must be a string"),
    ("local_dir", "", "''", "names no directory: give a path, or None"),
    ("local_dir_survives", "yes", "'yes'", "must be True or False"),
    ("buffer_bytes", 0, "0", "at least 1"),
    ("buffer_bytes", 1e9, "1000000000.0", "a whole number"),
    ("buffer_bytes", "8GB", "'8GB'", "a whole number"),
    ("elastic_batch", "half", "'half'", "'keep' or 'scale'"),
    ("fast_forward", "jump", "'jump'", "'auto' or 'fetch' or 'skip'"),
    ("elastic_batch", True, "True", "'keep' or 'scale'"),
    ("storage_options", None, "***", "must be a dict"),
    ("storage_options", "", "***", "must be a dict"),
    ("storage_options", [("key", "value")], "***", "must be a dict"),
    ("storage_options", {1: "value"}, "***", "must be a dict"),
]


@pytest.mark.parametrize(("name", "bad", "value", "remedy"), BAD)
def test_a_setting_that_cannot_work_is_told_with_field_value_and_remedy(name, bad, value, remedy):
    """
    Each one fails alone, when the settings are made, with a message that says what to change.
    """
    with pytest.raises(ConfigError) as caught:
        SpotConfig(**{**GOOD, name: bad})

    assert str(caught.value).startswith(f"{name}={value}")
    assert remedy in str(caught.value)


def test_each_setting_has_a_value_that_cannot_work():
    """
    A new setting is checked too.
    """
    assert {name for name, *_ in BAD} == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_no_value_of_any_type_ends_in_another_error(setting):
    """
    A value is taken, or refused as a setting that cannot work.
    """
    values = (*(bad for _, bad, _, _ in BAD), object(), 1j, [None], {}, {"key": 1}, (), set(), len, str, timedelta.max)
    for value in values:
        try:
            ends_in = repr(SpotConfig(**{**GOOD, setting.name: value}))
        except ConfigError as error:
            ends_in = str(error)
        assert ends_in.startswith(("SpotConfig(url=", f"{setting.name}="))


def test_without_an_interval_nothing_would_be_saved():
    """
    One of the two intervals is needed.
    """
    with pytest.raises(ConfigError, match=r"every_steps=None and every_seconds=None.*Set at least one"):
        SpotConfig(**{**GOOD, "every_steps": None})


def test_a_refused_value_is_printed_without_secrets():
    """
    A message may end in a log, too.
    """
    for bad in ({"storage_options": "key=hidden"}, {"storage_options": {b"key": "hidden"}}):
        with pytest.raises(ConfigError) as caught:
            SpotConfig(**{**GOOD, **bad})
        assert "hidden" not in str(caught.value)


VARIABLES = {
    "url": ("gs://other/run", "gs://other/run"),
    "every_steps": ("7", 7),
    "every_seconds": ("1.5", 1.5),
    "grace_seconds": ("110", 110.0),
    "on_notice": ("continue", "continue"),
    "notice_sources": ("aws, slurm", ("aws", "slurm")),
    "notice_file": ("/run/notice", "/run/notice"),
    "acknowledge_notice": ("true", True),
    "compile_cache": ("true", True),
    "keep_last": ("5", 5),
    "keep_every": ("1000", 1000),
    "local_dir": ("/nvme/spot", "/nvme/spot"),
    "local_dir_survives": ("true", True),
    "buffer_bytes": ("1000000", 1_000_000),
    "elastic_batch": ("scale", "scale"),
    "fast_forward": ("skip", "skip"),
}


def test_each_setting_but_the_storage_options_has_a_variable():
    """
    A new setting has one too, under its own name.
    """
    assert {setting.name: setting.variable for setting in SETTINGS} == {
        **{name: f"SPOT_{name.upper()}" for name in VARIABLES},
        "storage_options": None,
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
        "compile_cache": False,
        "on_notice": "leave",
        "notice_sources": "auto",
        "notice_file": "/mine",
        "elastic_batch": "keep",
        "fast_forward": "auto",
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
        ("SPOT_EVERY_SECONDS", "0:05:00", "not a number, or 'auto'"),
        ("SPOT_EVERY_SECONDS", "nan", "above 0"),
        ("SPOT_GRACE_SECONDS", "auto", "not a number"),
        ("SPOT_KEEP_LAST", "True", "not a whole number"),
        ("SPOT_ACKNOWLEDGE_NOTICE", "yes", "not true or false"),
        ("SPOT_LOCAL_DIR_SURVIVES", "1", "not true or false"),
        ("SPOT_NOTICE_SOURCES", "ec2", "names of aws"),
        ("SPOT_ON_NOTICE", "stay", "must be 'leave' or 'continue'"),
        ("SPOT_ELASTIC_BATCH", "half", "must be 'keep' or 'scale'"),
    ],
)
def test_a_bad_variable_is_named(name, text, says, monkeypatch):
    """
    The message names the variable, or the setting that it stands for, and its value.
    """
    monkeypatch.setenv(name, text)

    with pytest.raises(ConfigError) as caught:
        from_environment(url="s3://bucket/run", **({} if "EVERY_S" in name else {"every_steps": 5}))

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
    with pytest.raises(
        ConfigError, match=r"url is missing\. Pass it, or set SPOT_URL, for example to s3://bucket/run-7"
    ):
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


@pytest.mark.parametrize("name", ["notice_file", "local_dir"])
def test_a_path_that_is_no_text_is_refused(name):
    """The message names what it takes."""
    with pytest.raises(ConfigError, match=f"{name}=5 must be a string or None"):
        SpotConfig(url="/data/run", every_steps=1, **{name: 5})
