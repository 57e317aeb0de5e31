"""
The code blocks of the documents: each runs in a scene, is run by another test, or is in :data:`NOT_RUN`.

``documented_scenes.py`` has the scenes, ``drills/test_documented_blocks.py`` runs them, and
``public/test_documents.py`` fails if a block is in none of these tables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("python", "bash", "console")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"^( *)\.\.\.(?=$|  #)", re.MULTILINE)

ELSEWHERE = {
    ("README.md", "spot drill"): "drills/test_drill.py",
    ("docs/commands/drill.md", "$ spot drill"): "drills/test_drill.py",
    ("docs/commands/export.md", "dcp.load"): "unit/export/test_moving_in.py",
    ("docs/commands/import.md", ""): "unit/export/test_moving_in.py",
    ("docs/commands/verify.md", "of them read before"): "multiprocess/test_verbs.py",
    ("docs/concepts/sharding.md", "torchrun"): "drills/test_bare_tutorial.py",
    ("docs/format.md", ""): "public/test_documented_code.py",
    ("docs/howto/testing.md", ""): "unit/testing/test_fault_proxy.py",
    ("docs/plan.md", "$ spot plan"): "public/test_documented_code.py",
    ("docs/quickstart.md", "spot drill"): "drills/test_quickstarts.py",
    ("docs/tutorials/accelerate.md", "Accelerator()"): "drills/test_quickstarts.py",
    ("docs/tutorials/accelerate.md", "spot drill"): "drills/test_quickstarts.py",
    ("docs/tutorials/accelerate.md", "two_cpus.yaml"): "drills/test_accelerate_launch.py",
    ("docs/tutorials/accelerate.md", "$ python train.py"): "drills/test_accelerate_launch.py",
    ("docs/tutorials/bare.md", "SpotLoop"): "drills/test_bare_tutorial.py",
    ("docs/tutorials/bare.md", "parallelize_module"): "drills/test_bare_tutorial.py",
    ("docs/tutorials/bare.md", "$ python train.py"): "drills/test_bare_tutorial.py",
    ("docs/tutorials/bare.md", "fabric.setup_module"): "drills/test_bare_tutorial.py",
    ("docs/tutorials/bare.md", "spot drill"): "drills/test_quickstarts.py",
    ("docs/tutorials/trainer.md", "class Regression"): "drills/test_quickstarts.py",
    ("docs/tutorials/trainer.md", "--steps 100"): "drills/test_quickstarts.py",
    ("examples/", "train.py"): "drills/test_recipes.py",
    ("examples/", "$ spot plan"): "public/test_documented_code.py",
}
"""Page or folder, words of its blocks and the test that runs them. Without words: all blocks of the page."""

INSTALLS = "installs from a clone, as `make dist` does"
NEEDS_CLOUD = "needs the tools and an account of a cloud"
NEEDS_CLUSTER = "needs a cluster"
TYPED = "a person waits between its lines; drills/test_notices.py has such notices"

OF_PROVIDERS = "asks the providers of prices; contract/test_markets.py and multiprocess/test_prices.py stand for them"

OTHER_TOOL = "needs LLaMA-Factory, which wants other versions of transformers and TRL; tried by hand"

NOT_RUN = {
    ("README.md", "pip install"): INSTALLS,
    ("README.md", "make demo"): "runs all tests; `make demo` is drills/test_demo.py",
    ("docs/commands/drill.md", "0 6 1"): "is for cron, and sends mail",
    ("docs/howto/aws.md", "aws ec2"): NEEDS_CLOUD,
    ("docs/howto/gcp.md", "gcloud"): NEEDS_CLOUD,
    ("docs/howto/index.md", "SPOT_NOTICE_FILE"): TYPED,
    ("docs/howto/monitoring.md", "--watch"): "never ends; multiprocess/test_prices.py",
    ("docs/howto/skypilot.md", "sky jobs"): NEEDS_CLOUD,
    ("docs/howto/slurm.md", "sbatch"): NEEDS_CLUSTER,
    ("docs/howto/torchrun-rescale.md", "--nnodes"): NEEDS_CLUSTER,
    ("docs/notices.md", "SPOT_NOTICE_FILE"): TYPED,
    ("docs/notices.md", "--shutdown-timeout"): "leaves out the program",
    ("docs/prices.md", "--watch"): "never ends; multiprocess/test_prices.py",
    ("docs/quickstart.md", "pip install"): INSTALLS,
    ("docs/tutorials/accelerate.md", "pip install"): INSTALLS,
    ("docs/tutorials/bare.md", "pip install"): INSTALLS,
    ("docs/tutorials/trainer.md", "pip install"): INSTALLS,
    ("docs/tutorials/trainer.md", "run_exp"): OTHER_TOOL,
    ("docs/tutorials/trainer.md", "sft.yaml"): OTHER_TOOL,
    ("docs/commands/doctor.md", ""): "each line depends on the machine; multiprocess/test_doctor.py has them",
    ("docs/prices.md", "$/GPU-H    $/H"): OF_PROVIDERS,
    ("docs/prices.md", "--bytes"): OF_PROVIDERS,
    ("docs/prices.md", "--emit skypilot"): OF_PROVIDERS,
}
"""Page, words of its block and why no test runs it."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of *page*, a path below the repository."""

    page: str
    language: str
    text: str

    def as_python(self, instead: str) -> str:
        """Return Python code that runs the block. *instead* replaces a line that is left out (``...``)."""
        if self.language == "python":
            return LEFT_OUT.sub(rf"\1{instead}", self.text)
        return f"{self.language}({self.text!r})\n"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A program around blocks of a page, with what the page takes as given."""

    page: str
    program: str
    """Python code. A line ``<< WORDS`` stands for the only block of the page that contains WORDS."""
    instead: str = "as_before()"
    """Code in place of a line that the page leaves out."""
    says: str = ""
    """Words that the last run of the program prints."""
    num_runs: int = 1
    needs: str = ""
    """A program that not every machine has."""

    def blocks(self) -> list[Block]:
        return [block_of(self.page, words) for words in re.findall(r"^ *<< (.+)$", self.program, re.MULTILINE)]

    def code(self) -> str:
        """Return the program with the blocks in it."""

        def placed(mark: re.Match[str]) -> str:
            return textwrap.indent(block_of(self.page, mark[2]).as_python(self.instead), mark[1])

        program = re.sub(r"^( *)<< (.+)\n", placed, self.program, flags=re.MULTILINE)
        return f"from documented import bash, compare, console, lines_of, steps_of\n{program}"


def blocks_of(page: str) -> list[Block]:
    return [Block(page=page, language=kind, text=text) for kind, text in FENCED.findall((ROOT / page).read_text())]


def block_of(page: str, words: str) -> Block:
    found = [each for each in blocks_of(page) if each.language in CODE and words in each.text]
    assert len(found) == 1, f"{len(found)} blocks of {page} contain {words!r}"
    return found[0]


def is_listed(block: Block, table: dict[tuple[str, str], str]) -> bool:
    return any(block.page.startswith(page) and words in block.text for page, words in table)


# What follows is called by the programs of the scenes.


def bash(script: str) -> None:
    """Run *script*, which ends at the first command that fails."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)


def console(block: str) -> None:
    """Run the commands of *block* in one shell, and compare what they print with the block."""
    shown, printed = lines_of(block)
    if shown:
        compare(shown, printed)


def compare(shown: list[str], printed: list[str]) -> None:
    """Fail unless *printed* are the lines of a page. Anything may stand where the page has ``...``."""
    wanted = re.escape("\n".join(shown)).replace(re.escape("..."), "(?s:.*)")
    assert re.fullmatch(wanted, "\n".join(printed)), "\n".join(unified_diff(shown, printed, "page", "printed"))


def lines_of(block: str) -> tuple[list[str], list[str]]:
    """Run the commands of *block*. Return the lines that it shows and those that were printed, without figures."""
    joined = block.replace("\\\n", " ").splitlines()
    commands = "\n".join(line[2:] for line in joined if line.startswith("$ "))
    done = subprocess.run(["bash", "-c", commands], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(commands, done.stdout, sep="\n", file=sys.stderr)
    shown = [figureless(line) for line in joined if not line.startswith("$ ")]
    assert shown or done.returncode == 0
    printed = done.stdout.replace(os.getcwd(), "/home/me").splitlines()
    return shown, [figureless(line) for line in printed]


def figureless(line: str) -> str:
    """Return *line* with ``#`` for each number, date, hash, duration and size, and one blank for several."""
    line = re.sub(r'"[0-9a-f]{16}"|\d[\d.,:TZ+-]*(?:e-\d+)?(?: (?:B|kB|MB|GB|ms|s|min|h)\b,?)?', "#", line)
    return " ".join(line.split())


def steps_of(url: str) -> list[int]:
    """Return the committed steps of the run at *url*, the newest first."""
    table = subprocess.run(["spot", "show", url], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [int(line.split()[0]) for line in table.splitlines()[1:]]
