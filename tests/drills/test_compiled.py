"""Lives of a training with a compiled function, each on a machine whose compiler has empty caches."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from launching import exit_codes, launch

FOUND, COMPILED = {"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 0}, {"fxgraph_cache_hit": 0, "fxgraph_cache_miss": 1}

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++"),
    pytest.mark.skipif(
        not hasattr(torch.compiler, "save_cache_artifacts"), reason="torch 2.6 cannot save what it has compiled"
    ),
]


def life(folder, machine, num_steps, *words):
    """Run a life on *machine*, whose name is that of a new folder. Return what the compiler found, and the log."""
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / machine),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes, each of which imports torch
        "TORCHINDUCTOR_VEC_ISA_OK": "1",  # fewer probes of the processor
    }
    output = folder / f"{machine}.txt"
    arguments = (str(folder / "run"), num_steps, *words)
    process = launch("compiled_train", arguments, environment=environment, output=output)
    assert exit_codes([process]) == [0], output.read_text()
    log = output.read_text()
    return json.loads(next(line for line in log.splitlines() if line.startswith("{"))), log


@pytest.fixture(scope="module")
def first_life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    assert life(folder, "machine-1", 1, "keeps")[0] == COMPILED
    return folder


@pytest.fixture
def folder(first_life, tmp_path):
    shutil.copytree(first_life / "run", tmp_path / "run")
    return tmp_path


def archive_of(folder):
    (archive,) = (folder / "run/compile-cache").rglob("*.zip")
    return archive


def test_the_next_machine_compiles_nothing(first_life, folder):
    """
    Neither graphs nor libraries: the library of the kernel is the same file. So nothing is kept again.
    """
    before = archive_of(folder).stat().st_mtime_ns

    found, _ = life(folder, "machine-2", 2)

    (library,) = first_life.glob("machine-1/*/*.main.so")
    assert found == FOUND
    assert (folder / "machine-2" / library.relative_to(first_life / "machine-1")).read_bytes() == library.read_bytes()
    assert archive_of(folder).stat().st_mtime_ns == before


def damage(archive):
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")


def move_to_other_software(archive):
    attempt, _, content = archive.name.split("-")
    archive.rename(archive.with_name(f"{attempt}-{'0' * 16}-{content}"))


def put_a_file_in_the_place(archive):
    shutil.rmtree(archive.parents[1])
    archive.parents[1].write_bytes(b"")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        (damage, ["keeps"], "no compiled code of an earlier attempt is loaded"),
        (move_to_other_software, [], "no earlier attempt has kept compiled code for this software and hardware"),
        (put_a_file_in_the_place, ["gives up"], "what is compiled is not kept for the next attempt"),
        (lambda archive: None, ["off"], "resumed from step 1"),
    ],
    ids=["damaged", "other software", "refused", "off"],
)
def test_what_is_not_loaded_is_compiled_again(change, words, told, folder):
    """
    With one line that says so, and the training continues.
    """
    change(archive_of(folder))

    found, log = life(folder, "machine-2", 2, *words)

    assert found == COMPILED
    assert log.count(told) == 1
