"""What the documents point at exists, and the code in them runs as far as its imports."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"\]\(([^)\s]+)\)")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_a_link_to_a_file_finds_it(path: Path) -> None:
    """Every relative link, pictures included, leads to something in the repository."""
    targets = [link.partition("#")[0] for link in LINK.findall(path.read_text()) if "://" not in link]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@each_document
def test_the_code_in_it_names_what_exists(path: Path) -> None:
    """Every Python block parses, and what it imports from this package is there."""
    for block in PYTHON_BLOCK.findall(path.read_text()):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spot_plugins"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
