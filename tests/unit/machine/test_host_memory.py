"""The memory of a machine and of the cgroups of a process, as files of the kernel show it."""

from __future__ import annotations

import os

import pytest

from spot_plugins.machine.host_memory import available_bytes

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    500 kB\n"


def write(root, files):
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v2(folder, limit, used, files=0):
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {files}\nactive_file 0\n",
    }


def v1(folder, limit, used, files=200):
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {files - 200}\ntotal_active_file 200\n",
    }


TOP = "sys/fs/cgroup"
V1 = f"{TOP}/memory"
OLD = "4:cpuset:/\n3:cpu,memory:/job/a\n0::/\n"
MACHINES = {
    "no cgroup": ({}, 512_000),
    "no limit": ({"proc/self/cgroup": "0::/job\n", **v2(f"{TOP}/job", "max", 5)}, 512_000),
    "own limit": ({"proc/self/cgroup": "0::/job\n", **v2(f"{TOP}/job", 400_000, 300_000)}, 100_000),
    "files that may go": ({"proc/self/cgroup": "0::/job\n", **v2(f"{TOP}/job", 400_000, 300_000, 50_000)}, 150_000),
    "limit above": (
        {"proc/self/cgroup": "0::/job/a\n", **v2(f"{TOP}/job/a", "max", 1), **v2(f"{TOP}/job", 9_000, 2_000)},
        7_000,
    ),
    "container": ({"proc/self/cgroup": "0::/\n", **v2(TOP, 9_000, 2_000)}, 7_000),
    "more than the machine": ({"proc/self/cgroup": "0::/\n", **v2(TOP, 9_000_000, 2_000)}, 512_000),
    "v1": ({"proc/self/cgroup": OLD, **v1(f"{V1}/job/a", 9_000, 2_000, 500), **v1(V1, 2**63 - 4096, 0)}, 7_500),
    "v1, path of the host": ({"proc/self/cgroup": OLD, **v1(V1, 9_000, 2_000)}, 7_200),
}


@pytest.mark.parametrize(("files", "expected"), MACHINES.values(), ids=MACHINES)
def test_the_least_of_the_machine_and_of_all_cgroups_is_available(files, expected, tmp_path):
    """Cached files do not count. A container may see its own cgroup as the root."""
    write(tmp_path, files)
    assert available_bytes(tmp_path) == expected


def test_this_machine_has_memory():
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
