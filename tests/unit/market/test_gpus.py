"""Names of GPUs, in the spellings of all providers."""

from __future__ import annotations

import pytest

from spot_plugins.market import aws, azure, gcp, vast
from spot_plugins.market.gpus import NAMES, matches, normal_name


@pytest.mark.parametrize(
    ("text", "memory_gb", "name"),
    [
        ("h100", None, "H100"),
        ("NVIDIA H100 80GB HBM3", None, "H100"),
        ("H100 SXM", 80, "H100"),
        ("H100 (80 GB SXM5)", None, "H100"),
        ("NVIDIA H100 NVL", None, "H100"),
        ("H200", None, "H200"),
        ("NVIDIA H200 141GB", None, "H200"),
        ("NVIDIA H20", None, "H20"),
        ("GH200 (96 GB)", None, "GH200"),
        ("A100 SXM4", 39.6, "A100-40GB"),
        ("A100 SXM4", 79.6, "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", None, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", None, "A100-80GB"),
        ("a100-40gb", None, "A100-40GB"),
        ("A100", None, "A100"),
        ("A10 (24 GB PCIe)", None, "A10"),
        ("NVIDIA A10G", None, "A10G"),
        ("NVIDIA A40", 48, "A40"),
        ("RTX A6000", None, "A6000"),
        ("A6000 (48 GB)", None, "A6000"),
        ("NVIDIA L4", 24, "L4"),
        ("L4 24GB", None, "L4"),
        ("L40", 48, "L40"),
        ("NVIDIA L40S", None, "L40S"),
        ("Tesla V100", 16, "V100-16GB"),
        ("Tesla T4", None, "T4"),
        ("NVIDIA GeForce RTX 4090", None, "RTX4090"),
        ("RTX 6000Ada", None, "RTX6000ADA"),
        ("NVIDIA RTX 6000 Ada Generation", None, "RTX6000ADA"),
        ("RTX PRO 6000 WS", None, "RTXPRO6000"),
        ("AMD Instinct MI300X OAM", None, "MI300X"),
        ("NVIDIA B200", 180, "B200"),
        ("RTX 4090D", None, None),
        ("RTX 3090 Ti", None, None),
        ("RTX 6000 (24 GB)", None, None),
        ("A4500", None, None),
        ("N/A", None, None),
        ("", None, None),
    ],
)
def test_a_gpu_has_one_name(text: str, memory_gb: float | None, name: str | None) -> None:
    """Makers, forms and memories fall away, and a GPU that only begins alike is another one."""
    assert normal_name(text, memory_gb) == name


def test_a_name_names_itself() -> None:
    """Names that are printed can be asked for, in any case."""
    assert [normal_name(name) for name in NAMES] == list(NAMES)
    assert [normal_name(name.lower()) for name in NAMES] == list(NAMES)


def test_tables_of_machines_have_names() -> None:
    """A misspelled name in a table would never be found."""
    known = {gpu for gpu, _ in (*aws.MACHINES.values(), *azure._MACHINES.values())} | {m.gpu for m in gcp._MACHINES}
    assert known <= set(NAMES)
    for name, spellings in vast._SPELLINGS.items():
        assert {normal_name(spelling) for spelling in spellings} == {name}


def test_a_name_without_memory_wants_all_sizes() -> None:
    assert matches("A100-80GB", "A100")
    assert not matches("A100-80GB", "A100-40GB")
    assert not matches("A100", "A100-80GB")
    assert not matches("A10G", "A10")
