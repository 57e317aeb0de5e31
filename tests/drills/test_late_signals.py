"""A SIGTERM that comes while a host closes its session: the process leaves with code 143, or shows its error."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

pytestmark = pytest.mark.timeout(900)  # several processes import a host, one after the other, at any load

PREAMBLE = """
import os, signal, sys, torch
from spot_plugins.push.pusher import Pusher

url, fails, is_late = sys.argv[1], sys.argv[2] == "fails", sys.argv[3] == "late"
close = Pusher.close

def close_late(self):
    global is_late
    if is_late:
        is_late = False  # a session closes its pusher once more, after it has given the signals back
        os.kill(os.getpid(), signal.SIGTERM)
    close(self)

Pusher.close = close_late
"""
BARE = """
from spot_plugins import SpotConfig
from spot_plugins.session import SpotSession

model = torch.nn.Linear(2, 1)
with SpotSession(SpotConfig(url=url, every_steps=1)) as session:
    session.handle_signals()
    session.register_model(model)
    for step in range((session.resume() or 0) + 1, 4):
        if fails:
            raise RuntimeError("broken")
        session.after_step(step)
    session.finish(3)
print("went on")
"""
ACCELERATE = """
from accelerate import Accelerator
from spot_plugins.accelerate import SpotHook

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
loader = torch.utils.data.DataLoader(torch.ones(6, 2), batch_size=2)
with SpotHook(accelerator, url, every_steps=1) as spot:
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    spot.resume()
    for epoch in spot.epochs(1):
        for batch in spot.batches(loader):
            if fails:
                raise RuntimeError("broken")
            accelerator.backward(model(batch).sum())
            optimizer.step()
print("went on")
"""
LIGHTNING = """
import lightning.pytorch as pl
from spot_plugins.lightning import SpotCheckpoint

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        if fails:
            raise RuntimeError("broken")
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

loader = torch.utils.data.DataLoader(torch.ones(6, 2), batch_size=2)
trainer = pl.Trainer(
    max_epochs=1,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    callbacks=[SpotCheckpoint(url, every_steps=1)],
)
trainer.fit(Module(), loader)
print("went on")
"""
HOSTS = {"bare": BARE, "accelerate": ACCELERATE, "lightning": LIGHTNING}


@pytest.fixture(params=HOSTS)
def program(request, tmp_path):
    """Write a program of the host. Return a function that runs it, with its exit code and its output."""
    script = tmp_path / "train.py"
    script.write_text(PREAMBLE + dedent(HOSTS[request.param]))

    def run(*arguments):
        found = subprocess.run(
            [sys.executable, str(script), f"file://{tmp_path}/run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return found.returncode, found.stdout

    return run


def test_a_training_that_ended_leaves(program):
    """The end is stored, the process leaves with 143, and the next one has nothing left to train."""
    code, output = program("ends", "late")
    assert (code, "went on" in output) == (143, False), output
    assert "SIGTERM: " in output
    code, output = program("ends", "quiet")
    assert (code, "went on" in output) == (0, True), output
    assert "step 3" in output


def test_a_training_that_failed_shows_its_error(program):
    """The error is what is seen. A warning says that the signal was not obeyed."""
    code, output = program("fails", "late")
    assert (code, "went on" in output) == (1, False), output
    assert "RuntimeError: broken" in output
    assert "the signal is not obeyed, because training ends with an error" in output
