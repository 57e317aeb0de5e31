"""No wait without a limit: each call in the sources that waits has its limit, and what happens then, above it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "docs/generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_wait_has_a_limit(generate: ModuleType) -> None:
    """The comment above the call makes its row in docs/reference/waits.md."""
    missing = [(where, call) for where, call, limit, _ in generate.found_waits() if not limit]
    assert missing == [], 'write "# wait: LIMIT; WHAT HAPPENS THEN" above the statement'


def test_a_call_without_a_timeout_names_the_event_that_ends_it(generate: ModuleType) -> None:
    """A bare join(), wait(), get() or result() ends when something happens, and its comment says what."""
    bare = [
        (where, call, limit)
        for where, call, limit, _ in generate.found_waits()
        if call.endswith("()") and not limit.startswith(("until ", "at once", "the ", "`TIMEOUT_S`"))
    ]
    assert bare == []


@pytest.mark.parametrize(
    "source",
    [
        "thread.join()",
        "a = [each.result() for each in puts]",
        "while queue.get() is not None: pass",
        "queue.get(timeout=3)",
        "with lock.acquire(): pass",
        "done = subprocess.check_call(command)",
        "data = os.read(pipe, 1)",
        "async def f():\n    await asyncio.wait({put})",
        "f = lambda: event.wait()",
        "if True:\n    pass\nelif event.wait():\n    pass",
        "match sock.recv(1):\n    case b'': pass",
    ],
)
def test_a_wait_is_found_wherever_it_is(generate: ModuleType, source: str) -> None:
    assert len(list(generate.waiting_calls(ast.parse(source)))) == 1


@pytest.mark.parametrize("source", ["', '.join(names)", "os.path.join(a, b)", "d.get('x')", "f'{a}'.join(b)"])
def test_words_are_joined_without_a_wait(generate: ModuleType, source: str) -> None:
    assert list(generate.waiting_calls(ast.parse(source))) == []
