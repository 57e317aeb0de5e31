"""The targets of all links in the documents exist, and the code in them runs as far as its imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from spot_plugins import errors, events
from spot_plugins.config import SpotConfig
from spot_plugins.launch.drilled import FOLDER_VARIABLE, STEPS_VARIABLE
from spot_plugins.leave.phase import Phase
from spot_plugins.notices.surroundings import _PROVIDERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASH_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"\bSPOT_[A-Z_]+\b")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_a_link_to_a_file_finds_it(path: Path) -> None:
    """Every relative link, pictures included, leads to something in the repository."""
    targets = [link.partition("#")[0] for link in LINK.findall(path.read_text()) if "://" not in link]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@each_document
def test_a_link_to_a_heading_finds_it(path: Path) -> None:
    """The part of a link after the # is a heading of the page that it leads to."""
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        if anchor and "://" not in link:
            page = path.parent / target if target else path
            assert anchor in {slug(heading) for heading in HEADING.findall(BLOCK.sub("", page.read_text()))}, link


def slug(heading: str) -> str:
    """Return the anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@each_document
def test_the_code_in_it_names_what_exists(path: Path) -> None:
    """Every Python block parses, and what it imports from this package is there."""
    for block in PYTHON_BLOCK.findall(path.read_text()):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spot_plugins"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@each_document
def test_a_script_in_it_is_one(path: Path) -> None:
    """Bash takes every block, and YAML is YAML."""
    for block in BASH_BLOCK.findall(path.read_text()):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for block in YAML_BLOCK.findall(path.read_text()):
        assert yaml.safe_load(block)


@each_document
def test_a_variable_in_it_is_one_of_ours(path: Path) -> None:
    """A name that nobody reads would be believed to be set."""
    known = {f"SPOT_{field.name.upper()}" for field in fields(SpotConfig)} - {"SPOT_STORAGE_OPTIONS"}
    known |= {FOLDER_VARIABLE, STEPS_VARIABLE}
    assert set(VARIABLE.findall(path.read_text())) <= known


def test_the_navigation_has_every_page_once() -> None:
    """A page that is not in the navigation is found by nobody."""
    listed = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md"))


def pages_of(entry: Any) -> list[str]:
    """Return the paths in *entry*, a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for each in inner for page in pages_of(each)]


def test_the_reference_is_that_of_the_sources() -> None:
    """The pages in docs/reference are those that `make docs` makes: change the sources, then run it."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)

    made = generate.pages()

    assert set(made) == set(ROOT.glob("docs/reference/*"))
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"


def test_the_architecture_has_the_layers_and_every_package() -> None:
    """The list of layers is that of the import contract, and each package and module has its line in the table."""
    text = (ROOT / "docs/architecture.md").read_text().partition("## Packages")[2]
    (layers,) = re.findall(r"^layers = (\[.*?^\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert "\n".join(ast.literal_eval(layers)) in text

    names = {path.stem for path in (ROOT / "src/spot_plugins").glob("[!_]*") if path.name != "py.typed"}
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == names


def test_each_alarm_is_an_event() -> None:
    """A user who watches for an event that does not exist is never warned."""
    alarms = (ROOT / "docs/operating.md").read_text().partition("## Alarms")[2].partition("\n## ")[0]
    names = set(re.findall(r"`([A-Z]\w+)`", alarms))
    assert {name for name in names if not hasattr(events, name)} == set()
    assert {"PushFailing", "SaveDeferred", "LocalWriteFailed", "Superseded", "CheckpointRejected", "Committed"} <= names


def test_each_error_and_each_phase_is_explained() -> None:
    """Operating says what to do about each error, and the architecture what is true in each phase."""
    raised = {name for name, each in vars(errors).items() if isinstance(each, type)} - {"SpotError"}
    table = (ROOT / "docs/operating.md").read_text().partition("## Errors")[2]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == raised

    phases = (ROOT / "docs/architecture.md").read_text().partition("## Phases")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", phases, re.MULTILINE) == [phase.name for phase in Phase]


def test_there_is_a_page_for_whatever_is_recognised() -> None:
    """Each provider that a session finds, and each launcher, is in the table of the how-tos."""
    pages = {path.stem for path in ROOT.glob("docs/howto/*.md")} - {"index"}
    assert set(_PROVIDERS) <= pages
    index = (ROOT / "docs/howto/index.md").read_text()
    assert {page for page in pages if f"({page}.md" not in index} == set()
