"""The pages on spot plan show what the code says: the example, and each table and figure of the text."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from matplotlib import image

from spot_plugins.cli import main
from spot_plugins.economics.grace import nodes_to_fit
from spot_plugins.economics.inputs import Options, inputs_of
from spot_plugins.economics.money import best_goodput, break_even_mean_s, effective_saving
from spot_plugins.economics.page import duration
from spot_plugins.economics.rates import HOURS_PER_MONTH, rate_of_share
from spot_plugins.economics.sizes import MOMENTS, WEIGHT_BYTES
from spot_plugins.economics.walltime import Costs, best_interval_s

DOCS = Path(__file__).parents[3] / "docs"
PLAN = DOCS / "plan.md"
TRACE = Path(__file__).parents[2] / "traces" / "bamboo_aws_p3.csv"
ECONOMICS = DOCS / "concepts" / "spot-economics.md"

PUSH, COPY = 500e6, 5e9  # bytes per second
PER_DAY = (0.05, 0.15, 0.20)
MODELS = {
    "7B, QLoRA": (3e9, 1),
    "70B, QLoRA": (35e9, 1),
    "70B, weights alone": (140e9, 4),
    "405B, weights alone": (810e9, 16),
    "405B, all state at 12 bytes": (4860e9, 16),
}
DISCOUNTS = (0.4, 0.5, 0.6, 0.7)
GOODPUTS = (0.99, 0.97, 0.9, 0.8, 0.7, 0.6)


def table(head, rows):
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def costs_of(num_bytes, nodes):
    """Return the costs of waiting for the push, and of pushing beside training."""
    push_s, copy_s = num_bytes / nodes / PUSH, num_bytes / nodes / COPY
    restart_s = 600 + push_s
    return Costs(stall_s=push_s, restart_s=restart_s), Costs(stall_s=copy_s, push_s=push_s, restart_s=restart_s)


def cell(costs, mean_s):
    return f"{duration(best_interval_s(costs, mean_s))} ({1 - best_goodput(costs, mean_s):.1%})"


def frequencies():
    """Return the table of intervals."""
    rows = []
    for name, (num_bytes, nodes) in MODELS.items():
        waits, beside = costs_of(num_bytes, nodes)
        means = [rate_of_share(share, 24).mean_s(nodes) for share in PER_DAY]
        cells = [f"{cell(waits, mean_s)}, {cell(beside, mean_s)}" for mean_s in means]
        rows.append([name, f"{num_bytes / 1e9:,.0f} GB", str(nodes), *cells])
    return table(["model", "checkpoint", "machines", *(f"{share:.0%} a day" for share in PER_DAY)], rows)


def savings():
    """Return the table of effective savings."""
    rows = [
        [f"{discount:.0%}", *(f"{effective_saving(1 - discount, 1.0, kept):.0%}" for kept in GOODPUTS)]
        for discount in DISCOUNTS
    ]
    return table(["discount", *(f"goodput {kept:.0%}" for kept in GOODPUTS)], rows)


def break_evens():
    """Return the table of break-even rates."""
    costs = Costs(stall_s=7.0, push_s=70.0, restart_s=120.0)
    rows = [
        [name, *(f"{86400 / break_even_mean_s(1 - each, costs, is_noticed=noticed):,.0f}" for each in DISCOUNTS)]
        for name, noticed in (("without notices", False), ("with a save after each notice", True))
    ]
    return table(["discount", *(f"{each:.0%}" for each in DISCOUNTS)], rows)


def sentences():
    """Return the parts of sentences with figures."""
    mean_days = {hours: rate_of_share(0.2, hours).mean_s() / 86400 for hours in (24, HOURS_PER_MONTH)}
    wastes = [1 - best_goodput(costs_of(35e9, 1)[1], rate_of_share(0.2, hours).mean_s()) for hours in mean_days]
    nodes = [nodes_to_fit(size, 120, 10, PUSH) for size in (405e9 * 6, 405e9 * 16, 405e9 * 2)]
    return {
        "FULL": f"{405e9 * 6 / 1e12:.1f} to {405e9 * 16 / 1e12:.1f}",
        "FULLNODES": f"{nodes[0]} to {nodes[1]}",
        "WEIGHTNODES": str(nodes[2]),
        "G40": f"{0.6 / 0.69:.0%}",
        "G60": f"{0.4 / 0.69:.0%}",
        "MONTH": f"{mean_days[HOURS_PER_MONTH]:.0f}",
        "DAY": f"{mean_days[24]:.1f}",
        "FACTOR": f"{wastes[0] / wastes[1]:.0f}",
    }


@pytest.mark.parametrize("made", [frequencies, savings, break_evens], ids=lambda made: made.__name__)
def test_the_tables_are_computed(made):
    """
    Each table of the page is what the formulas give.
    """
    assert made() in ECONOMICS.read_text()


def test_the_figures_of_the_text_are_computed():
    """
    The same for the figures in sentences, which stand in the text in this order.
    """
    text = " ".join(ECONOMICS.read_text().partition("## Where published tables")[2].split())
    found = sentences()
    assert re.search(
        f"which is {found['FULL']} TB.* need {found['FULLNODES']} machines, not {found['WEIGHTNODES']}\\..*"
        f"31 % at a goodput of {found['G40']}, .* goodput of {found['G60']}\\..* "
        f"machine in {found['MONTH']} days; 20 % a day is one in {found['DAY']} days.* about {found['FACTOR']}\\.",
        text,
    )
    for percent, discount in ((found["G40"], 0.4), (found["G60"], 0.6)):
        assert effective_saving(1 - discount, 1.0, int(percent[:-1]) / 100) == pytest.approx(0.31, abs=0.005)


def test_the_bytes_per_parameter_are_those_of_the_rule():
    """
    The table of the size has the moments and the bytes of the estimate.
    """
    text = PLAN.read_text()
    kinds = ("adamw", "sgd-momentum", "sgd")
    assert f"| moments per parameter | {' | '.join(str(MOMENTS[each]) for each in kinds)} |" in text
    for first, second in (("mixed", "fp32"), ("bf16", "fp16")):
        sizes = [WEIGHT_BYTES[first] * (1 + MOMENTS[each]) for each in kinds]
        assert WEIGHT_BYTES[first] == WEIGHT_BYTES[second]
        assert f"| `{first}`, `{second}`: bytes per parameter | {' | '.join(map(str, sizes))} |" in text


def test_the_example_is_real(capsys, monkeypatch):
    """
    The command prints what the page shows. Simulated times may differ in the last digits with another numpy.
    """
    block = re.search(r"```console\n\$ (spot plan .*?)\n(.*?)\n```", PLAN.read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.setattr(sys, "argv", shlex.split(block[1]))
    with pytest.raises(SystemExit) as ended:
        main()
    printed, shown = capsys.readouterr().out.splitlines(), block[2].splitlines()

    assert ended.value.code == 0
    assert [numbers(line) for line in printed if "simulated" in line] == [
        pytest.approx(numbers(line), rel=0.003) for line in shown if "simulated" in line
    ]
    assert [line for line in printed if "simulated" not in line] == [line for line in shown if "simulated" not in line]


@pytest.fixture
def spot_plan(monkeypatch, capsys):
    """Run the verb in this process. Return its code and what it prints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["spot", "plan", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return run


def test_a_picture_of_the_simulated_runs(spot_plan, tmp_path):
    """
    A PNG beside the text and beside the document, which has none of the runs. From a rate and from a trace.
    """
    for name, rate in (
        ("rate", ["--rate-per-day", "8%"]),
        ("trace", ["--trace", str(TRACE), "--nodes", "4", "--gpus", "4"]),
    ):
        file = tmp_path / f"{name}.png"
        words = ["--bytes", "35GB", *rate, "--train-hours", "100", "--deadline-hours", "200", "--png", str(file)]
        code, printed = spot_plan(*words, "--json")
        assert code == 0, printed.err
        assert json.loads(printed.out)["wall"]["num_runs"] > 100
        assert "walls_h" not in printed.out
        height, width, _ = image.imread(file).shape
        assert (height, width) == (495, 880)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--png", "a.png"], "png='a.png' has no simulated runs to show: give train_hours, and a rate of preemptions"),
        (["--train-hours", "9", "--png", "/no/such/a.png"], "png='/no/such/a.png' cannot be written: No such file"),
    ],
)
def test_a_picture_that_cannot_be_drawn(spot_plan, words, says):
    """
    Exit code 2, and nothing on stdout.
    """
    code, printed = spot_plan("--bytes", "35GB", "--rate-per-day", "8%", *words)
    assert (code, printed.out) == (2, "")
    assert says in printed.err


def test_a_picture_without_matplotlib(spot_plan, monkeypatch, tmp_path):
    """
    The package does not bring it.
    """
    monkeypatch.setattr("spot_plugins.cli.plan.find_spec", lambda name: None)
    file = str(tmp_path / "a.png")
    code, printed = spot_plan("--bytes", "3GB", "--rate-per-day", "8%", "--train-hours", "9", "--png", file)
    assert code == 2
    assert "needs matplotlib: pip install matplotlib" in printed.err


def numbers(line):
    return [float(each.replace(",", "")) for each in re.findall(r"\d[\d,.]*", line)]


def test_the_command_for_a_launcher_has_options_that_exist():
    """
    The options of the second example are those of the command.
    """
    (block,) = re.findall(r"```bash\n(spot plan .*?)```", PLAN.read_text(), re.DOTALL)
    words = [word for word in shlex.split(block.replace("\\\n", " ")) if word.startswith("--")]
    names = {word[2:].replace("-", "_") for word in words} - {"next"}
    assert names <= set(Options.__dataclass_fields__)
    assert inputs_of(Options(bytes="35GB", rate_per_day="8%")).push_s == 70.0
