"""The arguments of all hosts, the table in the README and the table of settings say the same."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import transformers
from accelerate import Accelerator
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.bare import SpotLoop
from spot_plugins.config import SETTINGS, Setting, SpotConfig
from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError
from spot_plugins.events import AttemptStarted
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.transformers import SpotTrainerCallback

README = Path(__file__).parents[2] / "README.md"

EVENTS = {
    "on_event": "Function that is called with every event of this rank, or a list of such functions.",
    "hooks": "Old name of on_event, accepted until 1.0.",
}
"""The arguments of a host that are no settings, and what is said of each."""

OWN = {"accelerator", "gradient_accumulation_steps"}
"""The arguments that one host alone has."""

ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)
ROW = re.compile(r"^\| *`(\w+)` *\|([^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
MARKUP = re.compile(r"`|\[|\]\([^)]*\)")

each_host = pytest.mark.parametrize(
    "host", [SpotCheckpoint, SpotHook, SpotTrainerCallback, SpotLoop], ids=lambda host: host.__name__
)


class Net(BoringModel):
    """A model of one layer, with a position in its data."""

    def train_dataloader(self) -> Any:
        return elastic_loader(RandomDataset(32, 4), batch_size=2)

    val_dataloader = train_dataloader


class Summed(torch.nn.Module):
    """A model for a Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).sum()}


def documented(host: type) -> dict[str, str]:
    """Return the arguments in the docstring of *host* that every host has, and what is said of each."""
    arguments = (inspect.getdoc(host) or "").split("\nArgs:\n")[1].split("\nRaises:\n")[0]
    lines = {name: " ".join(text.split()) for name, text in ARGUMENT.findall(arguments)}
    return {name: line for name, line in lines.items() if name not in OWN}


def make(host: type, url: Path, **arguments: Any) -> Any:
    """Return a *host* for the run at *url*."""
    first = [Accelerator(cpu=True)] if host is SpotHook else []
    return host(*first, str(url), every_steps=1, **arguments)


def train(spot: Any, folder: Path) -> None:
    """Begin a training with *spot* and end it in order."""
    if isinstance(spot, SpotCheckpoint):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = Trainer(accelerator="cpu", max_steps=1, default_root_dir=folder, callbacks=[spot], **quiet)
        trainer.fit(Net())
    elif isinstance(spot, SpotTrainerCallback):
        settings: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        arguments = transformers.TrainingArguments(str(folder / "output"), max_steps=1, **settings)
        data = [{"x": torch.ones(1)}] * 2
        transformers.Trainer(Summed(), arguments, train_dataset=data, callbacks=[spot]).train()
    else:
        with spot:
            pass


@each_host
def test_a_host_takes_each_setting(host: type) -> None:
    """Names, order and types are those of the table; None stands for a variable or for the table's default."""
    parameters = dict(inspect.signature(host).parameters)
    for own in OWN:
        parameters.pop(own, None)
    types, wanted = get_type_hints(host.__init__), get_type_hints(SpotConfig)

    assert list(parameters) == [setting.name for setting in SETTINGS] + list(EVENTS)
    for setting in SETTINGS:
        assert parameters[setting.name].default is None
        assert types[setting.name] == wanted[setting.name] | None


@each_host
def test_a_host_documents_each_setting(host: type) -> None:
    """The docstring of the class, which editors show, has the line of the table for each argument."""
    assert documented(host) == {setting.name: setting.documentation for setting in SETTINGS} | EVENTS


def test_the_readme_has_each_setting() -> None:
    """
    The table in the README has the names, variables, defaults and lines of the table of settings.

    The README may add links and backticks to a line.
    """
    settings = README.read_text().split("| argument | variable | default | meaning |")[1].split("\n\n")[0]
    rows = [tuple(MARKUP.sub("", cell).strip() for cell in row) for row in ROW.findall(settings)]

    wanted = [(each.name, each.variable or "", printed_default(each), each.documentation) for each in SETTINGS]
    assert rows == [*wanted, ("on_event", "", "()", EVENTS["on_event"])]


def printed_default(setting: Setting) -> str:
    """Return the default of *setting* as Python writes it, and nothing for a setting that has none."""
    if setting.default is MISSING:
        return ""
    return f"{setting.default:g}" if isinstance(setting.default, float) else repr(setting.default)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_is_documented_in_one_line(setting: Setting) -> None:
    """One line of the docstring of a host holds the name and the whole of the documentation."""
    assert setting.documentation[0].isupper()
    assert setting.documentation.endswith(".")
    assert len(f"        {setting.name}: {setting.documentation}") <= 120


@each_host
@pytest.mark.parametrize("one", [True, False], ids=["one", "several"])
def test_subscribers_get_the_events_of_a_training(host: type, one: bool, tmp_path: Path) -> None:
    """on_event is one function or a list of them, and each is called."""
    heard: list[Any] = []
    others: list[Any] = []

    train(make(host, tmp_path, on_event=heard.append if one else [heard.append, others.append]), tmp_path)

    assert AttemptStarted(attempt=1, world_size=1) in heard
    assert others == ([] if one else heard)


@each_host
def test_the_old_name_of_on_event_works_and_is_deprecated(host: type, tmp_path: Path) -> None:
    """hooks=[...] is accepted until 1.0; the warning has the new name and the line of the caller."""
    heard: list[Any] = []

    with pytest.warns(DeprecationWarning, match="hooks is the old name of on_event. Write on_event=") as warned:
        spot = make(host, tmp_path, hooks=[heard.append])
    train(spot, tmp_path)

    assert [Path(each.filename) for each in warned] == [Path(__file__)]
    assert AttemptStarted(attempt=1, world_size=1) in heard


@each_host
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_event": [print], "hooks": [print]}, "hooks is the old name of on_event. Pass only on_event"),
        ({"on_event": None}, "on_event=None must be a function or a list of functions"),
        ({"on_event": [print, 3]}, r"on_event=\[.*3\] must be a function or a list of functions"),
        ({"on_event": "print"}, "on_event='print' must be a function or a list of functions"),
    ],
    ids=["both", "none", "number", "name"],
)
def test_subscribers_that_cannot_be_called_are_refused(
    host: type, arguments: Any, message: str, tmp_path: Path
) -> None:
    """An object that cannot be called is refused when it is given, not at the first event."""
    with pytest.raises(ConfigError, match=message):
        make(host, tmp_path, **arguments)
