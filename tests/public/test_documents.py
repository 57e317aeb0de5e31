"""The targets of all links in the documents exist, and the code in them runs as far as its imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documented import CODE, ELSEWHERE, FENCED, NOT_RUN, Block, blocks_of, is_listed
from documented_scenes import SCENES

from spot_plugins import cli, errors, events
from spot_plugins.config import SpotConfig
from spot_plugins.launch.drilled import FOLDER_VARIABLE, STEPS_VARIABLE
from spot_plugins.leave.phase import Phase
from spot_plugins.notices.surroundings import _PROVIDERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
READMES = sorted([*ROOT.glob("examples/*/*.md"), *ROOT.glob("deploy/*.md")])
# The change log has commands of earlier versions.
PAGES = [str(path.relative_to(ROOT)) for path in (*DOCUMENTS, *READMES) if path.name != "CHANGELOG.md"]

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


def test_every_block_is_run_or_says_why_not() -> None:
    """A block that nothing runs is wrong sooner or later: add it to a scene, or to one table of documented.py."""
    in_scenes = {block for scene in SCENES for block in scene.blocks()}
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language in CODE]
    for block in blocks:
        tables = [block in in_scenes, is_listed(block, ELSEWHERE), is_listed(block, NOT_RUN)]
        assert sum(tables) == 1, f"{block.page}: {tables}\n{block.text}"

    for table in (ELSEWHERE, NOT_RUN):
        for entry in table:
            assert any(is_listed(block, {entry: ""}) for block in blocks), entry
    assert [test for test in ELSEWHERE.values() if not (ROOT / "tests" / test).exists()] == []


def test_every_scene_is_a_program() -> None:
    """`make soak` runs it. This finds blocks that do not fit into their places."""
    for scene in SCENES:
        compile(scene.code(), scene.page, "exec")


COMMAND = re.compile(r"(?:^ *|\$ |- |run: |; |&& |bin/)(?=(spot [a-z]+(?: .*)?$))", re.MULTILINE)
INLINE = re.compile(r"`spot ([a-z]+)((?: [^`:]+)?)`")


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parser of each verb, from the real command line."""
    apps: list[typer.Typer] = []
    monkeypatch.setattr(typer.Typer, "__call__", lambda app, **_: apps.append(app))
    monkeypatch.setenv("SPOT_NOTICE_FILE", "notice")  # as the pages export it
    cli.main()
    return dict(typer.main.get_command(apps[0]).commands)  # type: ignore[attr-defined]


def commands_in(block: Block) -> list[list[str]]:
    """Return the words of each ``spot VERB ...`` in *block*."""
    found = []
    for line in COMMAND.findall(block.text.replace("\\\n", " ")):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found.append(list(takewhile(lambda word: not set(word) <= set("();<>|&"), lexer)))
    return found


def test_every_command_in_the_documents_is_taken(verbs: dict[str, Any], tmp_path: Path) -> None:
    """The parser of the command line takes the commands of all blocks, and knows the options of those in a text."""
    commands = [words for page in PAGES for block in blocks_of(page) for words in commands_in(block)]
    assert len(commands) > 60
    for _, verb, *words in (words for words in commands if words[1] in verbs):
        print("spot", verb, *words)  # pytest shows the last one, the one that is refused
        verbs[verb].make_context(verb, [str(tmp_path) if word.startswith("/var/lib/") else word for word in words])

    for page in PAGES:
        for verb, words in INLINE.findall(FENCED.sub("", (ROOT / page).read_text())):
            if (page, verb) == ("docs/commands/import.md", "import"):  # it says that there is no such verb
                continue
            known = {option for each in verbs[verb].params for option in each.opts} | {"--help"}
            options = [word for word in words.split(" -- ")[0].split() if word.startswith("--") and word != "--"]
            assert [option for option in options if option not in known] == [], f"{page}: spot {verb}{words}"


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
