"""The code of the documents does what they say, and the examples stay short."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import metadata
from pathlib import Path

import pytest
import steps
import torch
from accelerate.commands.config.config_args import load_config_from_file
from commands import spot

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted(ROOT.glob("examples/[!d]*.py")), *sorted(ROOT.glob("examples/*/train.py"))]
CONFIGURATIONS = sorted(ROOT.glob("examples/*/*.yaml"))
READMES = sorted(ROOT.glob("examples/*/README.md"))
PLANS = [*READMES, ROOT / "docs/plan.md"]


def read_as_documented(folder, monkeypatch):
    """Run the block of docs/format.md in *folder* and return the tensors that it finds."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/format.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    found = {}
    exec(block, found)
    return found["tensors"]


def test_the_documented_reader_reads_what_two_ranks_saved(tmp_path, monkeypatch):
    """With json and safetensors alone, all tensors of the newest committed step come out, cut or not."""
    store = LocalStore(str(tmp_path / "spot-run/accelerate"))
    for rank in (0, 1):
        steps.save(4, store, rank=rank, world_size=2)
    steps.save(5, store, rank=0, world_size=2)  # rank 1 died before its part of step 5

    tensors = read_as_documented(tmp_path, monkeypatch)

    state = steps.state_of(4)
    flat = {f"part/{kind}/{name}": tensor for kind in ("both", "own") for name, tensor in state[kind].items()}
    assert tensors.keys() == flat.keys()
    for name, tensor in flat.items():
        assert torch.equal(tensors[name], tensor), name


def test_the_documented_reader_reads_what_a_session_saved(tmp_path, monkeypatch):
    """The same for a real session, with a tensor that is too long for one blob."""
    config = SpotConfig(url=f"file://{tmp_path}/spot-run/accelerate", every_steps=1)
    state = {"parameters": {"long": torch.arange(18_000_000).view(-1, 1000), "small": torch.randn(3, 4)}}
    session = SpotSession(config)
    session.register("model", steps.Holder(state), replicated=("parameters",))
    session.resume()
    session.finish(1)

    tensors = read_as_documented(tmp_path, monkeypatch)

    for name, tensor in state["parameters"].items():
        assert torch.equal(tensors[f"model/parameters/{name}"], tensor), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_a_recipe_is_short(recipe):
    """A recipe is read more than run: at most 150 lines."""
    assert len(recipe.read_text().splitlines()) <= 150


def test_every_extra_that_is_to_be_installed_exists():
    """``pip install ".[...]"`` only warns about an extra that does not exist, and installs without it."""
    pages = [ROOT / "README.md", *READMES, *ROOT.glob("docs/**/*.md")]
    named = {
        name
        for page in pages
        for names in re.findall(r'install "\.\[(.*?)\]', page.read_text())
        for name in names.split(",")
    }
    assert named >= {"lightning", "accelerate", "transformers", "fast", "cli"}
    assert named <= set(metadata("spot_plugins").get_all("Provides-Extra"))


def test_every_recipe_has_a_readme_and_is_found():
    """The README of a recipe is linked from the list in docs/tutorials/recipes.md, and its folder from the README."""
    folders = [path.parent.name for path in READMES]
    assert folders == [path.parent.name for path in sorted(ROOT.glob("examples/*/train.py"))]
    page = (ROOT / "docs/tutorials/recipes.md").read_text()
    assert [name for name in folders if f"`examples/{name}`" not in page] == []


@pytest.mark.parametrize("readme", PLANS, ids=lambda path: path.parent.name)
def test_the_plan_of_a_page_is_the_output_of_its_command(readme):
    """``spot plan`` with the documented options prints the documented figures."""
    (block,) = re.findall(r"^```console\n\$ (spot plan.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)
    command, _, output = block.replace("\\\n", "").partition("\n")
    done = spot(*shlex.split(command)[1:])
    assert (done.returncode, done.stdout) == (0, output)


KINDS = {
    "single_gpu": "NO",
    "one_cpu": "NO",
    "ddp": "MULTI_GPU",
    "several_nodes": "MULTI_GPU",
    "fsdp1": "FSDP",
    "fsdp2": "FSDP",
    "two_cpus": "MULTI_GPU",
    "two_cpus_fsdp2": "FSDP",
}
"""Use of each configuration of examples/accelerate_configs, by its name."""


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_accelerate_takes_the_configuration(path):
    """Accelerate's own reader takes the file, which refuses keys that it does not know."""
    config = load_config_from_file(str(path))
    if path.parent.name == "lora_70b_fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    else:
        assert config.distributed_type.value == KINDS[path.stem]
        assert (config.fsdp_config.get("fsdp_version") == 2) == path.stem.endswith("fsdp2")
    assert config.use_cpu == ("cpu" in path.stem)
