"""
Private names of a host are used in its ``internals.py`` and ``*_internals.py`` alone.

A private name begins with one underscore. Elsewhere in these packages one may stand:

- as an attribute of ``self``, ``cls`` or ``super()``, if a class of the package, or of ``loop``, defines it;
- as a string of that name, which ``getattr`` and ``__dict__`` take, on the same condition;
- in ``os._exit``, which Python documents.

It may not be imported from another package, nor be an argument by keyword.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import spot_plugins

ROOT = Path(spot_plugins.__file__).parent
PACKAGES = ("lightning", "accelerate", "transformers", "bare", "loop", "data")


def is_private(name):
    return name.isidentifier() and name.startswith("_") and not name.startswith("__")


def names_defined_in(trees):
    """Return the private names that classes define: methods, declared fields, and what is assigned to self."""
    names = set()
    for tree in trees:
        for definition in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(definition):
                if isinstance(node, ast.FunctionDef):
                    names.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                    names.add(node.attr)
    return names


def is_self(node):
    if isinstance(node, ast.Name):
        return node.id in ("self", "cls")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def foreign_names(tree, own):
    """Yield the line and the source of every private name that is not one of *own*."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found = is_private(node.attr) and not (is_self(node.value) and node.attr in own)
            found = found and ast.unparse(node) != "os._exit"
        elif isinstance(node, ast.ImportFrom):
            modules = (node.module or "").split(".") + [alias.name for alias in node.names]
            found = any(is_private(name) for name in modules)
        elif isinstance(node, ast.Import):
            found = any(is_private(name) for alias in node.names for name in alias.name.split("."))
        elif isinstance(node, ast.keyword):
            found = node.arg is not None and is_private(node.arg)
        elif isinstance(node, ast.Constant):
            found = isinstance(node.value, str) and is_private(node.value) and node.value not in own
        else:
            found = False
        if found:
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_private_names_of_a_host_are_in_its_internals(package):
    """So that a new version of the host is checked, and adapted to, in one file."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}
    own = names_defined_in([*trees.values(), *(ast.parse(path.read_text()) for path in (ROOT / "loop").glob("*.py"))])
    assert len(trees) > 4
    assert [
        f"{path.name}:{found}"
        for path, tree in trees.items()
        if not path.name.endswith("internals.py")
        for found in foreign_names(tree, own)
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "trainer.fit_loop._restarting = False",
        "self._trainer.fit_loop._data_fetcher",
        "self._state_of_the_host",
        "loader.__dict__.pop('_on_before_fetch')",
        "getattr(loader, '_iterator')",
        "from lightning.pytorch.loops.progress import _BatchProgress",
        "from torch._C import Generator",
        "import torch.utils.data._utils as data",
        "Sync(_should=True)",
        "other._mine",
    ],
)
def test_the_rule_sees_each_way_to_use_a_private_name(source):
    """Reading, writing, by name, by string, by import and by argument; ours too, if it is that of another object."""
    own = names_defined_in([ast.parse("class Own:\n    def __init__(self):\n        self._mine = 1")])

    assert own == {"__init__", "_mine"}
    assert len(list(foreign_names(ast.parse(source), own))) >= 1


def test_the_rule_lets_our_own_names_pass():
    """Within the class, also of a base class, and where Python documents the name."""
    source = "self._mine; super()._mine; os._exit(0); name in ('_mine',); self.__dict__; from . import internals"
    source = source.replace("; from", "\nfrom")

    assert list(foreign_names(ast.parse(source), {"_mine"})) == []
