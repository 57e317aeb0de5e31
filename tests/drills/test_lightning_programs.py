"""Programs of Lightning as users write them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from drill_settings import Settings
from hearing import DEADLINE_S
from launching import PROGRAMS, exit_codes, launch, module_path


def test_sigterm_is_a_notice_in_training_and_nothing_on_the_way_out(tmp_path):
    """Lightning's own handler never runs, and a second SIGTERM while the process leaves does nothing."""
    process = launch(
        "lightning_handler", (Settings(folder=str(tmp_path)),), environment={}, output=tmp_path / "output.txt"
    )

    assert exit_codes([process]) == [0], (tmp_path / "output.txt").read_text()[-3000:]


YAML = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: {epochs}
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  callbacks:
    - class_path: spot_plugins.lightning.SpotCheckpoint
      init_args:
        url: {url}
        every_steps: 3
        every_seconds: auto
"""


def test_it_is_configured_from_the_yaml_of_a_lightning_cli(tmp_path):
    """A LightningCLI program takes the callback from its file, and goes on in its second life."""
    file = tmp_path / "config.yaml"
    environment = {**os.environ, "PYTHONPATH": module_path()}
    outputs = []
    for epochs in (1, 2):
        file.write_text(YAML.format(url=tmp_path / "run", epochs=epochs))
        command = [sys.executable, str(PROGRAMS / "lightning_cli.py"), "fit", "--config", str(file)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(sorted(path.name for path in (tmp_path / "run" / "steps").iterdir()))

    assert outputs[0][-1] == "0000000006-000001"
    assert outputs[1][-1] == "0000000012-000002"
