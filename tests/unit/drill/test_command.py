"""Commands of users: the launcher in them, another number of processes, and the exit code to expect."""

from __future__ import annotations

import shlex

import pytest

from spot_plugins.drill.command import check_launcher, gives_143, with_ranks
from spot_plugins.errors import ConfigError

CHANGED = [
    ("torchrun train.py", "torchrun --nproc-per-node=3 train.py"),
    ("torchrun --standalone --nproc-per-node 2 train.py", "torchrun --standalone --nproc-per-node=3 train.py"),
    (
        "torchrun --nproc_per_node=2 train.py --nproc_per_node=9",
        "torchrun --nproc_per_node=3 train.py --nproc_per_node=9",
    ),
    ("torchrun train.py --nproc-per-node 9", "torchrun --nproc-per-node=3 train.py --nproc-per-node 9"),
    ("/opt/bin/torchrun -m train", "/opt/bin/torchrun --nproc-per-node=3 -m train"),
    ("python -m torch.distributed.run train.py", "python -m torch.distributed.run --nproc-per-node=3 train.py"),
    ("accelerate launch --num_processes=2 train.py", "accelerate launch --num_processes=3 train.py"),
    ("accelerate launch --num-processes 2 train.py", "accelerate launch --num-processes=3 train.py"),
    ("accelerate-launch train.py", "accelerate-launch --num_processes=3 train.py"),
    ("spot run -- torchrun --nproc-per-node 2 train.py", "spot run -- torchrun --nproc-per-node=3 train.py"),
]


@pytest.mark.parametrize(("command", "changed"), CHANGED)
def test_the_number_of_processes_is_changed_in_the_launcher_alone(command, changed):
    """An option of the script stays, even if it has the same name."""
    assert with_ranks(shlex.split(command), 3) == tuple(shlex.split(changed))


@pytest.mark.parametrize("command", ["python train.py", "python train.py torchrun", "bash train.sh", "accelerate test"])
def test_a_command_without_a_launcher_is_refused(command):
    """In words that say what to do."""
    with pytest.raises(ConfigError, match="can only be changed for torchrun and accelerate launch"):
        with_ranks(shlex.split(command), 3)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py", True),
        ("/usr/bin/python3.11 -m train", True),
        ("spot run -- torchrun train.py", True),
        ("python -m spot_plugins.cli run -- accelerate launch train.py", True),
        ("torchrun train.py", False),
        ("python -m torch.distributed.run train.py", False),
        ("accelerate launch train.py", False),
        ("bash train.sh", False),
    ],
)
def test_the_code_143_is_expected_where_it_arrives(command, expected):
    """Launchers have codes of their own, which spot run replaces."""
    assert gives_143(shlex.split(command)) is expected


@pytest.mark.parametrize("command", ["python train.py", "bash train.sh"])
def test_a_command_without_a_launcher_has_none_to_kill(command):
    """Its own process is a rank."""
    with pytest.raises(ConfigError, match="faults=agent-kill: the command has no launcher that could be killed"):
        check_launcher(shlex.split(command))


@pytest.mark.parametrize("command", ["torchrun train.py", "accelerate launch train.py", "spot run -- python train.py"])
def test_a_command_with_a_launcher_can_lose_it(command):
    check_launcher(shlex.split(command))
