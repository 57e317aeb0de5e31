"""
The comparison of a program with the one that saved a checkpoint.

Each difference has a verdict:

- *kept*: the checkpoint's value is used, such as a learning rate, because it is part of the restored state;
- *changed*: the new value is used from now on, such as a batch size;
- *refused*: the state cannot be used by this program.

Facts that only one of the two has are no difference, because versions of this package describe different facts. The
facts of a checkpoint are not trusted: whatever stands there, the comparison returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .facts import Facts

MAX_LINES: Final = 12
"""Most lines about differences. One more says how many are left out."""

MAX_SHOWN: Final = 80

_NEW_RUN: Final = "or start anew at another URL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The differences between the program and the checkpoint."""

    lines: list[str] = field(default_factory=list)
    """A sentence for each difference that is kept or changed."""
    refusals: list[str] = field(default_factory=list)
    """A sentence for each difference with which the checkpoint cannot be used."""
    other_functions: list[str] = field(default_factory=list)
    """The name of each schedule with a function that differs."""
    facts: dict[str, Facts] = field(default_factory=dict)
    """The facts of the program, with the checkpoint's values where those are used."""


def compare(saved: Any, here: Mapping[str, Facts]) -> Comparison:
    """Compare *here*, the facts of this program, with *saved*, those of the checkpoint."""
    saved = saved if isinstance(saved, Mapping) else {}
    result = Comparison(facts=dict(here))
    context = _Context(saved, here)
    for name in sorted(here, key=lambda each: here[each].get("is") == "hparams"):  # last, see _hparams
        before, now = saved.get(name), here[name]
        if not isinstance(before, Mapping) or before.get("is") != now.get("is"):
            continue
        try:
            _VERDICTS[now["is"]](name, before, now, result, context)
        except Exception:  # noqa: BLE001 - the checkpoint's facts are odd, and no fact is worth an error
            continue
    if (num_more := len(result.lines) - MAX_LINES) > 0:
        result.lines[MAX_LINES:] = [f"{num_more} more settings differ from the checkpoint's"]
    return result


class _Context:
    """The facts of both sides that other comparisons depend on."""

    def __init__(self, saved: Mapping[str, Any], here: Mapping[str, Facts]) -> None:
        self.told: set[tuple[str, str, str]] = set()
        """Name, saved and present value of each difference that has a line."""
        self._saved, self._here = saved, here

    def is_same(self, package: str) -> bool:
        """Return whether both have the same version of *package*."""
        before, now = (_facts(side.get("software")).get(package) for side in (self._saved, self._here))
        return before is not None and before == now

    def suffix(self, name: str, *more: str) -> str:
        """Return the words that tell *name* from other things of its kind. Nothing if there is one only."""
        kind = self._here[name].get("is")
        is_only = sum(each.get("is") == kind for each in self._here.values()) == 1
        words = [*([] if is_only else [name]), *more]
        return f" ({', '.join(words)})" if words else ""


_Verdict = Callable[[str, Mapping[str, Any], Facts, Comparison, _Context], None]


def _software(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    changed = [field for field, _, _ in _differences(before, now)]
    if changed:
        new, old = (", ".join(f"{field} {_word(side[field])}" for field in changed) for side in (now, before))
        result.lines.append(f"{new} now, and {old} in the checkpoint: numbers may differ in their last digits")


def _seed(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    for _, old, new in _differences(before, now):
        result.lines.append(
            f"the seed is {_word(new)} now, and {_word(old)} in the checkpoint: the random streams of the checkpoint "
            f"are used, but what was drawn before the resume is other, such as a random split of the data"
        )


def _settings(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    for setting, old, new in _differences(before, now):
        _changed(result, context, setting, old, new)


def _hparams(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    """Name what differs in either direction, but no value twice that is named as a setting of an optimizer."""
    for setting in sorted({*before, *now} - {"is"}):
        old, new = before.get(setting), now.get(setting)
        if not _equal(old, new) and (setting, _shown(old), _shown(new)) not in context.told:
            there = f"{_name(setting)}={_shown(old)}" if setting in before else f"no {_name(setting)}"
            here = f"{_name(setting)}={_shown(new)}" if setting in now else f"no {_name(setting)}"
            result.lines.append(f"hparams: {here} now, and {there} in the checkpoint")


def _optimizer(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    if not _fits(name, before, now, result):
        return
    groups = [(_facts(old), new) for old, new in zip(before["groups"], now["groups"], strict=False)]
    found: dict[tuple[str, str, str], list[int]] = {}
    for number, (old_group, new_group) in enumerate(groups):
        for setting, old, new in _differences(old_group, new_group):
            found.setdefault((setting, _shown(old), _shown(new)), []).append(number)
    for (setting, old, new), numbers in found.items():
        more = [] if len(numbers) == len(groups) else [f"group {', '.join(map(str, numbers))}"]
        _kept(result, context, setting, old, new, context.suffix(name, *more))
    kept = [{**new, **{key: old[key] for key in new if key in old}} for old, new in groups]
    result.facts[name] = {**now, "groups": [*kept, *now["groups"][len(kept) :]]}


def _scheduler(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    result.facts[name] = _compare_scheduler(name, before, now, result, context)


def _compare_scheduler(
    name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context
) -> Facts:
    """Compare a scheduler and those in it. Return the facts of *now* with the settings that are kept."""
    if not _fits(name, before, now, result):
        return now
    suffix = context.suffix(name)
    settings = _facts(before["settings"])
    for setting, old, new in _differences(settings, now["settings"]):
        _kept(result, context, setting, _shown(old), _shown(new), suffix)
    for attribute, functions in now["functions"].items():
        for old, new in zip(_facts(before["functions"]).get(attribute, ()), functions, strict=False):
            if _compare_function(attribute, _facts(old), new, suffix, result, context):
                result.other_functions.append(name)
    inner = [
        _compare_scheduler(name, old, new, result, context)
        for old, new in zip(before["inner"], now["inner"], strict=False)
    ]
    kept = {key: settings.get(key, value) for key, value in now["settings"].items()}
    return {**now, "settings": kept, "inner": [*inner, *now["inner"][len(inner) :]]}


def _compare_function(
    attribute: str, before: Mapping[str, Any], now: Facts, suffix: str, result: Comparison, context: _Context
) -> bool:
    """
    Compare a function that gives learning rates. torch saves no function, so the new one is used.

    Returns:
        True if the new one may give other rates.
    """
    values = [*_differences(_facts(before.get("values")), now["values"])]
    for setting, old, new in values:
        _changed(result, context, setting, old, new, suffix)
    for setting, old, new in _differences(_facts(before.get("state")), now.get("state", {})):
        _kept(result, context, setting, _shown(old), _shown(new), suffix)
    has_other_code = "code" in before and before["code"] != now.get("code", before["code"])
    if has_other_code and context.is_same("python"):
        result.lines.append(f"the function in {attribute} is another one than in the checkpoint, and is used{suffix}")
        return True
    return bool(values)


def _model(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    _class(name, before, now, result, context)
    old, new = _facts(before.get("modules")), now["modules"]
    if not context.is_same("torch") or not old or not new or old == new:
        return
    added, gone = (
        [f"{one[each]} x {_name(each)}" for each in sorted(one) if one[each] != other.get(each)]
        for one, other in ((new, old), (old, new))
    )
    here, there = (", ".join(each[:4]) + (", ..." if len(each) > 4 else "") for each in (added, gone))
    result.lines.append(
        f"the model has {here or 'fewer modules'} now, and {there or 'no such module'} in the checkpoint"
        f"{context.suffix(name)}"
    )


def _class(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    if before.get("class") is not None and not _equal(before["class"], now["class"]):
        result.lines.append(f"{name} is a {now['class']} now, and a {_word(before['class'])} in the checkpoint")


def _loader(name: str, before: Mapping[str, Any], now: Facts, result: Comparison, context: _Context) -> None:
    for setting, old, new in _differences(before, now):
        if setting == "samples":
            result.lines.append(
                f"the training data has {_word(new)} samples now, and {_word(old)} in the checkpoint: the order of the "
                f"samples is another from now on{context.suffix(name)}"
            )
        else:
            _changed(result, context, setting, old, new, context.suffix(name))


_VERDICTS: Final[dict[str, _Verdict]] = {
    "software": _software,
    "seed": _seed,
    "settings": _settings,
    "hparams": _hparams,
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "model": _model,
    "part": _class,
    "loader": _loader,
}
"""The comparison of each kind of thing."""


def _fits(name: str, before: Mapping[str, Any], now: Facts, result: Comparison) -> bool:
    """
    Return whether the state of a thing can be used by another class. If not, refuse it.

    A class of the program that has got another name is derived from the same class of torch.
    """
    old, new = before["class"], now["class"]
    if old == new:
        return True
    is_renamed = before.get("base") == now["base"] and now["base"] is not None and now["base"] not in (old, new)
    if is_renamed:
        result.lines.append(
            f"{name} is a {new} now, and a {_word(old)} in the checkpoint. The checkpoint's state is used"
        )
    else:
        result.refusals.append(
            f"{name} is {new} now, and was {_word(old)} when it was saved, whose state {new} cannot use. Use "
            f"{_word(old)}, {_NEW_RUN}"
        )
    return is_renamed


def _kept(result: Comparison, context: _Context, setting: str, old: str, new: str, suffix: str) -> None:
    context.told.add((setting, old, new))
    line = f"the checkpoint's {_name(setting)}={old} is used, not {_name(setting)}={new}{suffix}"
    if line not in result.lines:
        result.lines.append(line)


def _changed(result: Comparison, context: _Context, setting: str, old: Any, new: Any, suffix: str = "") -> None:
    context.told.add((setting, _shown(old), _shown(new)))
    line = f"{_name(setting)}={_shown(new)} is used from now on, not the checkpoint's {_shown(old)}{suffix}"
    if line not in result.lines:
        result.lines.append(line)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, saved and present value of each fact that both have and that is not equal."""
    for setting, new in now.items():
        if setting in before and not _equal(before[setting], new):
            yield setting, before[setting], new


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or repr(one) == repr(other)


def _facts(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shown(value: Any) -> str:
    """Return *value* as Python prints it, with lists as the tuples that most of them were."""
    value = tuple(value) if isinstance(value, list) else value
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _word(value: Any) -> str:
    """Return *value* without quotes. The checkpoint is not trusted, so nothing in it controls a terminal."""
    return _name(str(value))


def _name(value: Any) -> str:
    text = str(value)[:MAX_SHOWN]
    return text if text.isprintable() else repr(text)
