"""Torch's own compiler gets the code that was kept, and gives the code that it has made."""

from __future__ import annotations

import pytest
import torch

from spot_plugins.compiled import internals
from spot_plugins.compiled.archive import Compiled

pytestmark = [
    pytest.mark.skipif(not internals.is_possible(), reason="torch 2.6 cannot save what it has compiled"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler meets its own
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tmp_path / "inductor"


@pytest.mark.parametrize("path", ["../evil.so", "/tmp/evil.so", "aa/../../evil.so", "aa/evil.py", "evil.so"])
def test_a_library_lands_below_the_folder_of_inductor_or_nowhere(path, folder):
    with pytest.raises(ValueError, match="it has a library with the name"):
        internals.load(Compiled(b"", {path: b"code"}))

    assert not list(folder.parent.rglob("evil*"))


def test_what_torch_cannot_read(folder):
    with pytest.raises(ValueError, match="torch cannot read it"):
        internals.load(Compiled(b"junk", {"aa/caa.main.so": b"code"}))

    assert (folder / "aa/caa.main.so").read_bytes() == b"code"


def test_a_library_that_is_there_is_left_alone(folder):
    """
    The process may have mapped it.
    """
    (folder / "aa").mkdir(parents=True)
    (folder / "aa/caa.main.so").write_bytes(b"mapped")

    with pytest.raises(ValueError, match="torch cannot read it"):
        internals.load(Compiled(b"junk", {"aa/caa.main.so": b"code"}))

    assert [each.read_bytes() for each in (folder / "aa").iterdir()] == [b"mapped"]


def test_nothing_new_is_nothing(monkeypatch):
    """
    Without a look at what torch has, which copies it.
    """
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: pytest.fail("it is asked"))

    assert internals.take_new() is None
