"""The shape of the source: sizes, imports between packages, and a few rules of writing. ``NOT_YET`` lists the debts."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "spot_plugins"
TESTS = ROOT / "tests"

MAX_ROOT_MODULES = 6
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_METHODS = 20
MAX_FIELDS = 12
MAX_IMPORTED_BY = 0.4

# Every package raises these errors, emits these events or is configured, and reads the wall clock in one place.
IMPORTED_BY_ALL = {"errors", "events", "config", "clock"}
QUESTION_WORDS = {"What", "Who", "Where", "Whether", "How", "When", "Which"}

NOT_YET: dict[str, set[str]] = {}
"""By rule, what breaks it today. An entry that is no longer needed fails, so that it is removed with its cause."""

TESTED_ELSEWHERE = {
    "cli": ["multiprocess/test_cli.py", "multiprocess/test_cli_upkeep.py"],
}
"""Packages without a folder in tests/unit, and the files that test them: what they do takes processes or threads."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed file of the source."""

    name: str
    tree: ast.Module
    num_lines: int

    def classes(self) -> list[tuple[str, ast.ClassDef]]:
        """Return all classes with their full names."""
        return [(f"{self.name}.{node.name}", node) for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    def functions(self) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Return all functions and methods with their full names."""
        owners = {child: owner for _, owner in self.classes() for child in owner.body}
        return [
            (".".join(filter(None, [self.name, owners[node].name if node in owners else "", node.name])), node)
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]


@cache
def modules() -> tuple[Module, ...]:
    """Return all modules of the source, without the name of the distribution."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        found.append(Module(name=name, tree=ast.parse(text), num_lines=len(text.splitlines())))
    return tuple(found)


def check(rule: str, found: dict[str, object], remedy: str) -> None:
    """Fail if something else breaks *rule* than ``NOT_YET`` says. *found* has a figure or a word for each."""
    known = NOT_YET.get(rule, set())
    new = {name: figure for name, figure in found.items() if name not in known}
    assert not new, f"{rule}: {new}. {remedy}"
    fixed = known - found.keys()
    assert not fixed, f"these keep the rule now: remove them from NOT_YET[{rule!r}]: {sorted(fixed)}"


def test_every_debt_belongs_to_a_rule() -> None:
    """A misspelled rule in ``NOT_YET`` would allow nothing and never be removed."""
    assert NOT_YET.keys() <= {
        "modules in the root",
        "lines of a module",
        "lines of a function",
        "methods of a class",
        "fields of a class",
        "imported by too many",
        "a docstring that begins with a question",
        "getattr on a part",
        "paused stored twice",
    }


def test_the_root_has_few_modules() -> None:
    """The root is the table of contents: packages, and at most six modules beside ``__init__``."""
    names = {path.stem: "module" for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    found = names if len(names) > MAX_ROOT_MODULES else {}
    check("modules in the root", found, f"At most {MAX_ROOT_MODULES} may lie there; move one into a package.")


def test_no_module_is_long() -> None:
    """A file that fits in one reading: at most 400 lines."""
    found = {each.name: each.num_lines for each in modules() if each.num_lines > MAX_MODULE_LINES}
    check("lines of a module", found, f"At most {MAX_MODULE_LINES} lines; split it.")


def test_no_function_is_long() -> None:
    """At most 60 lines, without decorators and without the docstring, so that none is short for want of one."""
    found = {
        name: num_lines(node)
        for each in modules()
        for name, node in each.functions()
        if num_lines(node) > MAX_FUNCTION_LINES
    }
    check("lines of a function", found, f"At most {MAX_FUNCTION_LINES} lines; split it.")


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how long *function* is without its docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_class_has_many_methods() -> None:
    """At most 20 methods and properties; a getter and its setter are one."""
    found = {}
    for each in modules():
        for name, node in each.classes():
            methods = {
                child.name
                for child in node.body
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("__")
            }
            if len(methods) > MAX_METHODS:
                found[name] = len(methods)
    check("methods of a class", found, f"At most {MAX_METHODS} methods; it does two things.")


def test_no_object_has_many_fields() -> None:
    """
    At most 12 fields, wherever a method assigns them.

    Frozen dataclasses are exempt: they are values, such as settings and events, whose fields are the data. What the
    limit is for is state that changes.
    """
    found = {
        name: len(fields_of(node))
        for each in modules()
        for name, node in each.classes()
        if not is_frozen(node) and len(fields_of(node)) > MAX_FIELDS
    }
    check("fields of a class", found, f"At most {MAX_FIELDS} fields; group those that change together.")


def is_frozen(node: ast.ClassDef) -> bool:
    """Return whether *node* is a frozen dataclass."""
    return any(
        isinstance(decorator, ast.Call)
        and any(keyword.arg == "frozen" and ast.unparse(keyword.value) == "True" for keyword in decorator.keywords)
        for decorator in node.decorator_list
    )


def fields_of(node: ast.ClassDef) -> set[str]:
    """Return the names that instances of *node* have: fields of a dataclass and what its methods assign to self."""
    names = {attribute for attribute, _ in assigned_to_self(node)}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        names |= {
            child.target.id
            for child in node.body
            if isinstance(child, ast.AnnAssign)
            and isinstance(child.target, ast.Name)
            and "ClassVar" not in ast.unparse(child.annotation)
        }
    return names


def assigned_to_self(node: ast.AST) -> list[tuple[str, int]]:
    """Return the attributes of ``self`` that are assigned anywhere in *node*, and where."""
    return [
        (each.attr, each.lineno)
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    ]


@cache
def imports() -> dict[str, set[str]]:
    """Return, for each package or module of the root, the others that it imports from."""
    graph = grimp.build_graph("spot_plugins", cache_dir=None)
    packages = sorted(graph.find_children("spot_plugins"))
    for package in packages:
        graph.squash_module(package)
    return {
        short(package): {short(each) for each in graph.find_modules_directly_imported_by(package)}
        - {"spot_plugins", short(package)}
        for package in packages
    }


def short(module: str) -> str:
    """Return the name within the distribution."""
    return module.removeprefix("spot_plugins.")


def test_no_package_is_imported_by_most() -> None:
    """
    At most 40 % of the other packages import from one; else everything has to know what it is.

    Errors, events, settings and the clock are for all.
    """
    found = {}
    for package in imports().keys() - IMPORTED_BY_ALL:
        importers = sorted(other for other, imported in imports().items() if package in imported)
        if len(importers) > MAX_IMPORTED_BY * (len(imports()) - 1):
            found[package] = f"{len(importers)} of {len(imports()) - 1}: {', '.join(importers)}"
    check("imported by too many", found, f"At most {MAX_IMPORTED_BY:.0%} may; let callers pass what is needed.")


def test_no_packages_import_each_other() -> None:
    """Following the imports from package to package never leads back."""
    done: set[str] = set()

    def follow(package: str, path: tuple[str, ...]) -> None:
        assert package not in path, f"a cycle of packages: {' -> '.join((*path[path.index(package) :], package))}"
        if package not in done:
            for imported in sorted(imports()[package]):
                follow(imported, (*path, package))
            done.add(package)

    for package in imports():
        follow(package, ())


def test_no_docstring_begins_with_a_question() -> None:
    """The first line names the thing: a noun phrase or an imperative. Docstrings of fields count, too."""
    found: dict[str, list[str]] = {}
    for each in modules():
        for node in ast.walk(each.tree):
            if begins_with_a_question(node):
                found.setdefault(each.name.partition(".")[0], []).append(f"{each.name}:{node.lineno}")
    check("a docstring that begins with a question", found, "Begin with a noun or an imperative.")


def begins_with_a_question(node: ast.AST) -> bool:
    """Return whether *node* is a docstring, or any other text that stands alone, with a question word in front."""
    if (
        not isinstance(node, ast.Expr)
        or not isinstance(node.value, ast.Constant)
        or not isinstance(node.value.value, str)
    ):
        return False
    first, *_ = [*node.value.value.split(maxsplit=1), ""]
    return first.rstrip(",:") in QUESTION_WORDS


def test_parts_are_not_probed() -> None:
    """An optional method of a part has a default in ``Part``; nobody looks for it by its name."""
    found = {
        each.name: f"line {node.lineno}"
        for each in modules()
        if not each.name.startswith("data.")  # a part of a loader is torch's
        for node in ast.walk(each.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id == "part"
    }
    check("getattr on a part", found, "Give the protocol of parts a default instead.")


def test_paused_is_stored_once() -> None:
    """That the training is in a pause is one fact, so one object keeps it; two would come apart."""
    stores = {
        f"{name}.{attribute}": "stored"
        for each in modules()
        for name, node in each.classes()
        for attribute, _ in assigned_to_self(node)
        if "paused" in attribute
    }
    check("paused stored twice", stores if len(stores) > 1 else {}, "Ask the one object that knows.")


def test_unit_tests_mirror_the_packages() -> None:
    """Each folder of tests/unit is a package of the source, and each package has one or says where it is tested."""
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    folders = {path.name for path in (TESTS / "unit").iterdir() if any(path.glob("test_*.py"))}
    assert folders - packages == set(), "a folder of tests/unit is named after no package"
    assert packages - folders - TESTED_ELSEWHERE.keys() == set(), "a package has no folder in tests/unit"
    assert TESTED_ELSEWHERE.keys() <= packages - folders, "a package of TESTED_ELSEWHERE has its folder now, or is gone"
    assert [path for paths in TESTED_ELSEWHERE.values() for path in paths if not (TESTS / path).exists()] == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("class A:\n    def f(self):\n        self.paused = self.x = 1\n", {"paused", "x"}),
        ("@dataclass\nclass A:\n    a: int\n    b: ClassVar[int] = 1\n", {"a"}),
        ("class A:\n    a: int = 1\n", set()),
    ],
)
def test_fields_are_counted(source: str, rule: set[str]) -> None:
    """Assignments to self anywhere in the class, and the fields of a dataclass; a constant of the class is none."""
    assert fields_of(ast.parse(source).body[0]) == rule
