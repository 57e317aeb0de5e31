"""
One life of a training: ``python -m benchmarks.life SETTINGS``, which :mod:`.restart` starts and kills.

Each phase ends with a timestamp of the monotonic clock, which all processes of a machine share. The phases are written
to a file after the step that counts. Then the process waits until it is killed.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()  # before any other import, because these belong to the phases

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

SAVED_STEP = 2
ROWS = 100_000  # in the data set


def _now():
    """Return the time and the processor time of this process."""
    return [time.monotonic(), time.process_time()]


class Marks:
    """The seconds and the processor time of each phase. A phase ends where the next one begins."""

    def __init__(self, began, path):
        self._last = [began, 0.0]
        self._path = path
        self._document = {"began": began, "phases": {}, "cpu": {}, "fingerprint": None, "hash_cpu_s": 0.0}

    def end(self, phase):
        """Count the time since the last mark as *phase*."""
        now = _now()
        for kind, end, begin in zip(("phases", "cpu"), now, self._last, strict=True):
            self._document[kind][phase] = self._document[kind].get(phase, 0.0) + end - begin
        self._last = now

    def split(self, owner, name, before, within):
        """Let each call of ``owner.name`` end the phase *before* at its begin, and the phase *within* at its end."""
        original = getattr(owner, name)

        def timed(*arguments, **keywords):
            self.end(before)
            try:
                return original(*arguments, **keywords)
            finally:
                self.end(within)

        setattr(owner, name, timed)

    def add_hashing(self, seconds):
        """Count processor time of a thread that verifies, which is a part of the read."""
        self._document["hash_cpu_s"] += seconds

    def check(self, training):
        """Note the state that was saved or restored. This takes no time of any phase."""
        began = _now()
        self._document["fingerprint"] = training.fingerprint()
        self._last = [last + end - begin for last, end, begin in zip(self._last, _now(), began, strict=True)]

    def finish(self):
        """Write the phases, and wait to be killed."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._document))
        os.replace(part, self._path)
        sys.stdin.read()  # until the benchmark kills this process, or has ended
        os._exit(1)


class Program:
    """A training as the users of one way write it. This one has no checkpoint, and every way adds to it."""

    restores = False
    """True if a resumed life begins with the state that was saved."""

    def __init__(self, settings, marks):
        self.settings = settings
        self.marks = marks
        self.resumes = settings["resumes"]
        self.num_steps = 0
        self.training = None

    def begin(self):
        """Do what a program can do before torch is imported."""

    def import_library(self):
        """Import the library of this way."""

    def train(self):
        """Train up to the step that counts."""
        self.loop(self.loader())

    def save(self):
        """Save after the last step of the first life."""

    def loop(self, batches, step=None):
        """Train on *batches*, each with *step*."""
        step = step or (lambda batch: self.training.step(batch=batch))
        for batch in batches:
            self.marks.end("batch")
            step(batch)
            self.after_step()

    def after_step(self):
        """End the life if this step is the one that counts."""
        self.marks.end("step")
        self.num_steps += 1
        if self.resumes:
            self.marks.finish()
        if self.num_steps == SAVED_STEP:
            self.save()
            self.marks.check(self.training)
            self.marks.finish()

    def loader(self, named=False):
        """Return a shuffled loader of rows that cost almost nothing, with *named* as dictionaries."""
        import torch
        from torch.utils.data import DataLoader, Dataset

        width = self.training.batch.shape[1]

        class Rows(Dataset):
            def __len__(self):
                return ROWS

            def __getitem__(self, index):
                row = torch.full((width,), index / ROWS)
                return {"x": row} if named else row

        return DataLoader(Rows(), batch_size=len(self.training.batch), shuffle=True)


def main():
    """Be one life."""
    from . import programs

    settings = json.loads(sys.argv[1])
    marks = Marks(BEGAN, Path(settings["folder"], "marks.json"))
    program = programs.find(settings["way"])(settings, marks)
    marks.end("imports")
    program.begin()
    marks.end("library")
    import torch.distributed
    import torch.utils.data

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    marks.end("imports")
    program.import_library()
    marks.end("library")
    group = f"file://{settings['folder']}/group-{os.getpid()}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    marks.end("group")
    from .state import Training

    program.training = Training(settings["gb"], is_new=True)
    marks.end("model")
    program.train()


if __name__ == "__main__":
    main()
