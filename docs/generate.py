"""
The pages of ``docs/reference``, made from the sources: ``python docs/generate.py`` writes them.

Classes are read with :mod:`ast`, so neither torch nor a host is imported. ``tests/public/test_documents.py`` compares
the pages in the repository with those that this script makes.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from inspect import cleandoc
from pathlib import Path
from typing import cast

from spot_plugins.config import SpotConfig

SOURCES = Path(__file__).parents[1] / "src" / "spot_plugins"
PAGES = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the sources. Change them, then run `make docs`. -->\n\n"
API = {
    "spot_plugins": ["prefetch", "load_weights", "export_weights"],
    "spot_plugins.lightning": ["SpotCheckpoint"],
    "spot_plugins.accelerate": ["SpotHook", "Progress"],
    "spot_plugins.transformers": ["SpotTrainerCallback"],
    "spot_plugins.bare": ["SpotLoop"],
    "spot_plugins.session": ["SpotSession"],
    "spot_plugins.monitor.prometheus": ["Metrics"],
    "spot_plugins.fingerprints": ["read", "compare_runs", "Recorded", "Difference"],
    "spot_plugins.data": ["elastic_loader", "ElasticSampler", "LoaderPosition", "shield_workers"],
    "spot_plugins.state": ["ModelPart", "OptimizerPart", "RngPart"],
    "spot_plugins.testing": [
        *(
            "drill",
            "Signal",
            "KillRank",
            "KillPusher",
            "Notice",
            "Reboot",
            "HostLoss",
            "StoreOutage",
            "Freeze",
            "Verdict",
        ),
        "run_thread_ranks",
        "FaultProxy",
    ],
}
LOOP = [("spot_plugins.loop.loop", "Loop")]
BASES = {"SpotSession": [("spot_plugins.session.keeping", "KeepsSteps")], "SpotHook": LOOP, "SpotLoop": LOOP}
"""Bases whose members belong to the page of a class."""
OF_THE_HOST = re.compile(r"on_|setup$|teardown$")  # hooks that Lightning calls, nobody else
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
WAITS = """
Each call in the package that waits for a thread, a process, a device or a peer, with its limit. "until" names an event
that comes by itself, or that another row limits. The rows are made from the comments above the calls.

- **Requests to a store** are limited by its client, see [storage](../storage.md). A block that ends with an executor
  waits for the requests in it.
- **Calls of the board** are limited by the caller, or made on threads for which nobody waits without a limit. The start
  of a job waits 6 hours for the slowest rank, because a rank may read hundreds of GB first.
- **Locks** are held for moments, with two exceptions: a departure holds its lock until it has left, and a message to
  the pusher holds the lock of the socket while it is sent. Both are limited by rows below.
- **Local files** are read and written by the pusher without a limit, on a thread for which no push waits. The training
  process reads and writes them on threads of their own, and gives the disk up.
"""
Definition = ast.ClassDef | ast.FunctionDef
# fmt: off
WAITING = {
    "accept", "acquire", "all_gather", "all_gather_object", "all_reduce", "as_completed", "attentively", "barrier",
    "broadcast", "broadcast_object_list", "check_call", "check_output", "communicate", "connect",
    "create_connection", "flock", "getresponse", "join", "lockf", "new_group", "os.read", "readinto", "recv",
    "recv_fds", "recv_into", "recvmsg", "request", "result", "select", "send_fds", "sendall", "sigtimedwait",
    "sigwait", "sigwaitinfo", "sleep", "synchronize", "urlopen", "wait", "wait_for", "waitpid",
}
# fmt: on
"""Names of functions and methods of libraries that wait, and ``attentively``, each caller of which has its limit."""
NOT_WAITING = {
    *("os.path.join", "roster.join", "self.ledger.accept", "guard.request", "holders.select", "probe.connect"),
    "shlex.join",
    "it.way_out.wait",  # its own wait has a row
}
QUOTES = ("'", '"', "f'", 'f"', "b'")
WAIT = re.compile(r"\bwait: (?P<limit>[^;]+); (?P<then>.+)")


def settings() -> str:
    """Return one table row per field of ``SpotConfig``."""
    documented = {name: doc for name, _, doc in fields_of(find("config", "SpotConfig"))}
    rows = []
    for field in fields(SpotConfig):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        shown = "" if default is MISSING else f"`{default!r}`"
        variable = "" if field.name == "storage_options" else f"`SPOT_{field.name.upper()}`"
        meaning = " ".join([field.metadata.get("documentation", ""), documented.get(field.name, "")]).strip()
        rows.append((f"`{field.name}`", variable, f"`{field.type}`", shown, meaning))
    hosts = "`SpotCheckpoint`, `SpotHook`, `SpotTrainerCallback` and `SpotLoop`"
    intro = f"The arguments of {hosts}, which are the fields of `SpotConfig`. A variable fills in "
    intro += "an argument that is missing. It never overrides an argument that is given.\n\n"
    return f"# Settings\n\n{intro}{table(('argument', 'variable', 'type', 'default', 'meaning'), rows)}"


def events() -> str:
    """Return one section per kind of event."""
    module = parse("events")
    text = f"# Events\n\n{prose(ast.get_docstring(module))}\n"
    for node in (node for node in module.body if isinstance(node, ast.ClassDef) and "dataclass" in ast.unparse(node)):
        rows = [(f"`{name}`", f"`{type_}`", doc) for name, type_, doc in fields_of(node)]
        text += f"\n## {node.name}\n\n{prose(ast.get_docstring(node))}\n\n{table(('field', 'type', 'meaning'), rows)}"
    return text


def errors() -> str:
    """Return the tree of errors and one section per class."""
    module = parse("errors")
    first, tree, *rest = (ast.get_docstring(module) or "").split("\n\n")
    text = f"# Errors\n\n{first}\n\n```text\n{tree}\n```\n\n" + prose("\n\n".join(rest)) + "\n"
    for node in (node for node in module.body if isinstance(node, ast.ClassDef)):
        text += f"\n## {node.name}\n\n{prose(ast.get_docstring(node))}\n"
    return text


def cli() -> str:
    """Return what ``--help`` prints, for ``spot`` and each of its verbs."""
    overview = help_of()
    verbs = re.findall(r"^  ([a-z]+)  ", overview.partition("Commands:")[2], re.MULTILINE)
    shown = {"spot": overview, **{f"spot {verb}": help_of(verb) for verb in verbs}}
    parts = (f"\n## {title}\n\n```text\n{text}\n```\n" for title, text in shown.items())
    return "# Commands\n\nThey come with the extra `cli`.\n" + "".join(parts)


def api() -> str:
    """Return one section per public class and function."""
    text = "# Python API\n\nThe names that a program may rely on. Everything else may change in any release.\n"
    for module, names in API.items():
        text += f"\n## {module}\n"
        for node in (find(module, name) for name in names):
            head = "" if isinstance(node, ast.ClassDef) else signature(node, node.name)
            text += f"\n### {node.name}\n\n{head}{prose(ast.get_docstring(node))}\n" + "".join(members(node))
    return text


def waits() -> str:
    """Return one table row per call that waits."""
    rows = [(f"`{where}`", f"`{call}`", limit, then) for where, call, limit, then in found_waits() if limit]
    return f"# Waits\n{WAITS}\n{table(('where', 'call', 'limit', 'what happens then'), rows)}"


def found_waits() -> Iterator[tuple[str, str, str, str]]:
    """Yield where each call that waits is, the call, its limit, and what happens then. The last two may be missing."""
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text()
        lines = [line.strip() for line in text.splitlines()]
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
        seconds = {name: float(value) for name, value in re.findall(r"^([A-Z_]+_S)\b.* = ([\d.]+)", text, re.MULTILINE)}
        for where, last, call in waiting_calls(ast.parse(text)):
            first = last
            while lines[first - 1].startswith("#"):
                first -= 1
            told = WAIT.search(" ".join(line.lstrip("# ") for line in lines[first:last]))
            limit, then = (told["limit"], told["then"]) if told else ("", "")
            for name, value in seconds.items():
                limit = re.sub(rf"\b{name}\b", f"`{name}` ({value:g} s)", limit)
            yield f"{module}.{where}", ast.unparse(call), limit, then


def waiting_calls(node: ast.AST, where: str = "", line: int = 0) -> Iterator[tuple[str, int, ast.Call]]:
    """Yield each call that waits, with the function that it is in, and the number of the line above its statement."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        inner = f"{where}.{child.name}".strip(".") if named else where
        before = child.lineno - 1 if isinstance(child, ast.stmt) else line
        if isinstance(child, ast.Call):
            called = ast.unparse(child.func)
            keywords = {each.arg for each in child.keywords}
            takes_work = called.endswith(".get") and not child.args and keywords <= {"timeout"}  # from a queue
            waits = {called, called.rpartition(".")[2]} & WAITING and called not in NOT_WAITING
            if (waits or takes_work) and not called.startswith(QUOTES):  # the join() of a string
                yield inner, before, child
        yield from waiting_calls(child, inner, before)


def members(node: Definition) -> Iterator[str]:
    """Yield a part for the constructor, and for each documented field, property and method of a class and its base."""
    for name, type_, doc in fields_of(node):
        yield f"\n#### {node.name}.{name}\n\n`{type_}`: {prose(doc)}\n" if doc else ""
    body = node.body if isinstance(node, ast.ClassDef) else []
    for base in BASES.get(node.name, ()):
        body = [*body, *cast("ast.ClassDef", find(*base)).body]
    for method in (each for each in body if isinstance(each, ast.FunctionDef) and ast.get_docstring(each)):
        doc = prose(ast.get_docstring(method))
        if method.name == "__init__":
            yield f"\n{signature(method, node.name)}{doc}\n"
        elif not method.name.startswith("_") and not OF_THE_HOST.match(method.name):
            is_property = any(ast.unparse(each) == "property" for each in method.decorator_list)
            head = "A property. " if is_property else signature(method, method.name)
            yield f"\n#### {node.name}.{method.name}\n\n{head}{doc}\n"


def signature(node: ast.FunctionDef, name: str) -> str:
    """Return the header of a function as a block of code, one line per argument if it is long."""
    arguments = re.sub(r"^self(, |$)", "", ast.unparse(node.args)).replace("=", " = ")
    if len(arguments) > 80:
        arguments = "\n    " + re.sub(r", (?=\*?\*?\w+: |\*,)", ",\n    ", arguments) + ",\n"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"```text\n{name}({arguments}){returns}\n```\n\n"


def fields_of(node: Definition) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and documentation of each annotated field of a class."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    for item, following in zip(body, [*body[1:], None], strict=False):
        if isinstance(item, ast.AnnAssign):
            value = following.value if isinstance(following, ast.Expr) else None
            doc = str(value.value) if isinstance(value, ast.Constant) else ""
            yield ast.unparse(item.target), ast.unparse(item.annotation), cleandoc(doc)


def find(module: str, name: str) -> Definition:
    """Return the definition of *name*, which *module* has or imports from a module of its own."""
    parts = module.removeprefix("spot_plugins").strip(".").split(".")
    for node in ast.walk(parse(*parts)):
        if isinstance(node, Definition) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package = parts if SOURCES.joinpath(*parts).is_dir() else parts[:-1]
            package = package[: len(package) + 1 - node.level]
            return find(".".join([*package, node.module or ""]), name)
    raise LookupError(f"{module} has no {name}")


def parse(*parts: str) -> ast.Module:
    """Return the tree of a module, which is a file or a package."""
    path = SOURCES.joinpath(*parts)
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def prose(doc: str | None) -> str:
    """Return a docstring as Markdown."""
    text = re.sub(r":\w+:`~?\.*(?:[\w.]+\.)?(\w+)`", r"`\1`", doc or "")
    text = re.sub(r"::$", ":", re.sub(r"``([^`]+)``", r"`\1`", text), flags=re.MULTILINE)
    first, *rest = SECTION.split(text)
    for title, section in zip(rest[::2], rest[1::2], strict=True):
        listed = re.sub(r"\n {8,}", " ", section.strip("\n"))
        if title not in ("Returns", "Yields"):
            listed = re.sub(r"^ {4}([\w, ]+): ", r"- `\1`: ", listed, flags=re.MULTILINE)
        first += f"**{title}**\n\n{cleandoc(listed)}\n\n"
    return first.strip()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown, with the docstrings of the last column as one line each."""
    cells = [(*(each.replace("|", "\\|") for each in row[:-1]), " ".join(prose(row[-1]).split())) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ("---",) * len(head), *cells])


def help_of(*verbs: str) -> str:
    """Return what the command line prints for ``--help``."""
    command = [sys.executable, "-m", "spot_plugins.cli", *verbs, "--help"]
    environ = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def pages() -> dict[Path, str]:
    """Return the text of each page."""
    made = {
        "settings": settings(),
        "events": events(),
        "errors": errors(),
        "cli": cli(),
        "api": api(),
        "waits": waits(),
    }
    return {PAGES / f"{name}.md": NOTE + text for name, text in made.items()}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text)
