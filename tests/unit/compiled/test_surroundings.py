"""The software and hardware that compiled code is made for: each difference counts."""

from __future__ import annotations

import platform
import sysconfig

import pytest
import torch

from spot_plugins.compiled.surroundings import surroundings

PROCESSOR = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 2596.120\nflags\t\t: fpu avx2\n"
GPU = "proc/driver/nvidia/gpus/0000:01:00.0/information"


@pytest.fixture
def root(tmp_path):
    for file, text in {
        "proc/cpuinfo": PROCESSOR,
        "etc/os-release": "ID=a\n",
        GPU: "Model: \t\t H200\nIRQ: 1\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("proc/cpuinfo", "avx2", "avx512f"), ("etc/os-release", "ID=a", "ID=b"), (GPU, "H200", "H100")],
)
def test_another_machine_is_another_place(file, old, new, root):
    before = surroundings(root)
    (root / file).write_text((root / file).read_text().replace(old, new))

    assert surroundings(root) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "2.99"),
        lambda patch: patch.setattr(sysconfig, "get_config_var", lambda name: "cpython-399"),
        lambda patch: patch.setattr(platform, "libc_ver", lambda: ("glibc", "9")),
    ],
    ids=["torch", "Python", "libc"],
)
def test_other_software_is_another_place(change, root, monkeypatch):
    before = surroundings(root)
    change(monkeypatch)

    assert surroundings(root) != before


def test_what_changes_by_itself_does_not_count(root):
    """
    Such as the clock of the processor, the number of its cores and of equal GPUs.
    """
    before = surroundings(root)
    (root / "proc/cpuinfo").write_text(2 * PROCESSOR.replace("2596", "1800"))
    another = root / GPU.replace("01:", "02:")
    another.parent.mkdir()
    another.write_text("Model: \t\t H200\nIRQ: 2\n")

    assert surroundings(root) == before


def test_a_system_without_these_files(tmp_path):
    assert len(surroundings(tmp_path)) == 16
