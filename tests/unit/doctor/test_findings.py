"""The findings of an examination, on machines that lack something and on a good one."""

from __future__ import annotations

import math
import os
from collections import namedtuple
from importlib import metadata

import pytest
from metadata import AwsServer

from spot_plugins.config import SpotConfig
from spot_plugins.doctor import Examined, examine, here, places
from spot_plugins.doctor.notices import look_at_notices
from spot_plugins.doctor.places import Places
from spot_plugins.errors import ConfigError
from spot_plugins.notices.surroundings import look_around

GB = 1e9


def config(url, **settings):
    return SpotConfig(url=str(url), every_seconds="auto", **settings)


def around(config, tmp_path, **environ):
    return look_around(config, environ=environ, dmi=tmp_path, sagemaker_config=tmp_path / "none")


def verdicts(findings):
    return [(each.check, each.verdict) for each in findings]


def test_a_package_of_another_version_is_named_with_the_command_that_corrects_it(monkeypatch):
    own = metadata.requires("spot_plugins")
    monkeypatch.setattr(metadata, "requires", lambda name: [*own, 'lightning<2.0; extra == "all"', "fsspec>=3000"])

    findings = list(here.look_at_packages())

    lightning = metadata.version("lightning")
    assert verdicts(findings) == [("versions", "warning")] * 2
    assert [each.remedy for each in findings] == ["pip install 'fsspec>=3000'", "pip install 'lightning<2.0'"]
    assert findings[1].text == f"lightning {lightning} is none of the versions that this release works with (<2.0)"


def test_the_installed_packages_fit():
    (finding,) = here.look_at_packages()

    assert finding.verdict == "good"
    assert f"torch {metadata.version('torch')}" in finding.text


def test_a_machine_with_too_little_memory_for_its_share(monkeypatch):
    monkeypatch.setattr(here, "available_bytes", lambda: 10 * GB)

    assert ("memory", "good") in verdicts(here.look_at_machine(9 * GB))
    assert ("memory", "good") in verdicts(here.look_at_machine(None))
    assert ("memory", "bad") in verdicts(here.look_at_machine(9.5 * GB))  # a tenth must be free beside it


def test_a_container_with_the_shared_memory_that_docker_gives(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(here.shutil, "disk_usage", lambda path: usage(64 * 1024**2, 0, 64 * 1024**2))

    (finding,) = [each for each in here.look_at_machine(None) if each.check == "shared memory"]

    assert finding.verdict == "warning"
    assert "/dev/shm has 67.1 MB" in finding.text
    assert "--shm-size" in finding.remedy


@pytest.mark.parametrize("announces", [False, True])
def test_a_source_of_notices_is_asked(announces, tmp_path, monkeypatch):
    settings = config(tmp_path)
    with AwsServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        if announces:
            server.announce(60)
        surroundings = around(settings, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url)
        summary, asked = look_at_notices(settings, surroundings)

    assert "Notices come from SIGTERM, aws" in summary.text
    assert asked.verdict == ("warning" if announces else "good")
    assert asked.text == f"aws answers: it announces {'the' if announces else 'no'} end of this machine"


def test_a_source_that_cannot_be_reached_is_bad(tmp_path, monkeypatch):
    """Its notices would not reach the training, though the machine is one of that provider."""
    settings = config(tmp_path)
    with AwsServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
    surroundings = around(settings, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url)

    *_, asked = look_at_notices(settings, surroundings)

    assert asked.verdict == "bad"
    assert asked.text.startswith("aws does not answer: ")


def test_a_provider_without_notices_leaves_only_the_interval(tmp_path):
    settings = config(tmp_path)

    findings = list(look_at_notices(settings, around(settings, tmp_path, RUNPOD_POD_ID="1")))

    assert verdicts(findings) == [("notices", "warning")]
    assert findings[0].text == "runs on runpod, where runpod gives no usable notice"


@pytest.mark.parametrize(
    ("num_bytes", "nodes", "grace_s", "verdict", "words"),
    [
        (
            1 * GB,
            1,
            30,
            "good",
            "30 s after a notice (grace_seconds) store 2 GB per machine, and 1 GB are needed: 20 s",
        ),
        (2 * GB, 1, 30, "good", "2 GB are needed: 30 s"),
        (4 * GB, 1, 30, "warning", "4 GB are needed, which take 50 s: a notice loses the steps since the last save"),
        (4 * GB, 2, 30, "good", "2 GB are needed: 30 s"),
        (1 * GB, 1, 10, "warning", "10 s after a notice (grace_seconds) are too short for a save"),
        (None, 1, 30, "unknown", "store 2 GB per machine"),
    ],
)
def test_what_fits_into_the_grace_period(num_bytes, nodes, grace_s, verdict, words, tmp_path, monkeypatch):
    """At 0.1 GB/s, and with 10 s until the first byte is stored."""
    monkeypatch.setattr(places, "measure_store", lambda url: places_figure(0.1 * GB))
    settings = config(tmp_path, grace_seconds=grace_s)
    looked = Places(settings, num_bytes, nodes)
    list(looked.look_at_store())

    (finding,) = looked.look_at_grace(around(settings, tmp_path))

    assert finding.verdict == verdict
    assert words in finding.text
    if num_bytes == 4 * GB and nodes == 1:
        assert finding.remedy.endswith("or store it from 2 machines, with a sharded state")


def places_figure(value):
    return namedtuple("Figure", "value basis")(value, "a stand-in for a network of this speed")


def test_the_local_disk_of_a_remote_run(tmp_path, monkeypatch):
    """Three copies must fit: two that are kept and one that is written."""
    settings = config("s3://bucket/run", local_dir=str(tmp_path / "local"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage(0, 0, 10 * GB))
    monkeypatch.setattr(places, "is_in_memory", lambda path: False)

    assert verdicts(Places(settings, 3 * GB, 1).look_at_disk()) == [("disk", "good")]
    assert verdicts(Places(settings, 4 * GB, 1).look_at_disk()) == [("disk", "bad")]
    assert verdicts(Places(settings, 4 * GB, 2).look_at_disk()) == [("disk", "good")]
    assert os.listdir(tmp_path / "local") == []


def test_a_local_disk_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    settings = config("s3://bucket/run", local_dir=str(tmp_path / "file"))

    (finding,) = Places(settings, None, 1).look_at_disk()

    assert finding.verdict == "bad"
    assert finding.text.startswith("local copies cannot be written: ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_nodes": 0}, "nodes=0 must be at least 1"),
        ({"params": "many"}, "params='many'"),
        ({"params": "7B", "num_bytes": "8GB"}, "exactly one of params, bytes"),
        ({"grace_seconds": math.inf}, "grace_seconds=inf must be finite"),
        ({"url": ""}, "url='' names no place"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_looked_at(settings, says, tmp_path):
    with pytest.raises(ConfigError) as raised:
        next(examine(Examined(**{"url": str(tmp_path), **settings})))

    assert says in str(raised.value)
