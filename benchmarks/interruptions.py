"""
Interruptions of a transformers Trainer: the callback of spot_plugins beside the Trainer's own JIT checkpoint.

Every way trains the same model with the same interruptions, each in real processes. The periodic saves are alike, too:
every 20 steps. After an interruption, the same command is started again until the training ends. *JIT checkpoint* is
`enable_jit_checkpoint=True`, and its next process resumes from `get_last_checkpoint()`, as its users do.

- *codes* are the exit codes of the ranks. A scheduler starts a job again if they are not 0. *hangs* means that a rank
  had not ended `--limit` seconds after the signal, and was killed.
- *leaves s* are the seconds from the signal until the last rank has ended.
- *lost* are the steps that were trained and have to be trained again.
- *after it* compares the weights at the end with those of the same way left alone, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

from .report import Column, Report

SAVE_EVERY = 20  # steps
BATCH = 4
WAYS = {"spot_plugins": "spot_plugins", "jit": "JIT checkpoint"}
CASES = {
    "step": ("SIGTERM in a step", "SIGTERM", "train", [0]),
    "evaluation": ("SIGTERM in an evaluation", "SIGTERM", "evaluate", [0]),
    "one": ("SIGTERM to rank 1 alone", "SIGTERM", "train", [1]),
    "kill": ("SIGKILL", "SIGKILL", "train", [0]),
}
"""Name of each interruption, its signal, the batch in which it comes, and the ranks that get it."""

COLUMNS = [
    Column("codes", "codes", ""),
    Column("leaves_s", "leaves s", ".1f", ratio=True),
    Column("lost", "lost", "d"),
    Column("after", "after it", ""),
]


class Training:
    """One process of a training, as a user writes it."""

    def __init__(self, folder, way, arguments, interruption):
        import torch
        from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

        from spot_plugins.transformers import SpotTrainerCallback

        training = self

        class Steps(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                with open(folder / f"steps-{args.process_index}", "a") as file:
                    file.write(f"{state.global_step} ")

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                sizes = ((8, 64), (64, 3))
                self.layers = torch.nn.Sequential(*(torch.nn.Linear(*size) for size in sizes), torch.nn.Dropout(0.1))

            def forward(self, x, labels):
                training.spend(arguments.step_ms / 1000)
                training.reach("train" if self.training else "evaluate")
                return {"loss": torch.nn.functional.cross_entropy(self.layers(x), labels)}

        torch.set_num_threads(1)
        set_seed(1)
        self.folder, self.interruption, self.done = folder, interruption, {"train": 0, "evaluate": 0}
        self.at = {"train": arguments.steps // 4, "evaluate": arguments.evaluation // 10}
        settings = TrainingArguments(
            str(folder / "output"),
            max_steps=arguments.steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            save_strategy="steps" if way == "jit" else "no",
            save_steps=SAVE_EVERY,
            enable_jit_checkpoint=way == "jit",
            eval_strategy="steps",
            eval_steps=arguments.steps // 2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        self.rank, self.num_ranks = settings.process_index, settings.world_size
        url = f"file://{folder}/run"
        callbacks = [SpotTrainerCallback(url, every_steps=SAVE_EVERY)] if way == "spot_plugins" else []
        num_batches = arguments.evaluation * self.num_ranks
        self.trainer = Trainer(
            Net(),
            settings,
            train_dataset=self.data(torch, 40 * BATCH * self.num_ranks),
            eval_dataset=self.data(torch, num_batches * BATCH),
            callbacks=[*callbacks, Steps()],
        )

    @staticmethod
    def data(torch, size):
        generator = torch.Generator().manual_seed(size)
        return [{"x": torch.randn(8, generator=generator), "labels": number % 3} for number in range(size)]

    @staticmethod
    def spend(seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sum(range(1000))

    def reach(self, kind):
        """Send this process the signal, if it is its turn."""
        self.done[kind] += 1
        if self.interruption is None:
            return
        _, name, where, ranks = self.interruption
        if self.rank in ranks and kind == where and self.done[kind] == self.at[kind]:
            (self.folder / "signaled").write_text(str(time.time()))
            os.kill(os.getpid(), getattr(signal, name))

    def run(self, way):
        import torch
        from transformers.trainer_utils import get_last_checkpoint

        output = self.folder / "output"
        last = get_last_checkpoint(output) if way == "jit" and output.is_dir() else None
        self.trainer.train(resume_from_checkpoint=last)
        if self.trainer.state.global_step == self.trainer.args.max_steps and self.rank == 0:
            torch.save(self.trainer.model.state_dict(), self.folder / "final.pt")


def train(folder, way, arguments, interruption, environment):
    """Be one rank of a training."""
    import logging
    import warnings

    os.environ.update(environment)
    output = open(folder / f"output-{environment.get('RANK', 0)}.txt", "ab", buffering=0)  # noqa: SIM115  until the end
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    Training(folder, way, arguments, interruption).run(way)


def live(folder, way, arguments, num_ranks, interruption=None):
    """Run one life on all ranks. Return their exit codes, None for one that had to be killed, and when it ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.trainer", "spot_plugins.transformers"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    processes = []
    for rank in range(num_ranks):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
        processes.append(context.Process(target=train, args=(folder, way, arguments, interruption, environment)))
        processes[-1].start()
    signaled = folder / "signaled"
    ended = {}
    while len(ended) < num_ranks:
        now = time.time()
        ended |= {process: now for process in processes if process not in ended and process.exitcode is not None}
        if interruption and signaled.exists() and now - float(signaled.read_text() or now) > arguments.limit:
            break
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes, max(ended.values(), default=None)


def ranks_of(number):
    return "1 rank" if number == 1 else f"{number} ranks"


def steps_of(folder):
    """Return the steps that rank 0 has trained, in their order."""
    path = folder / "steps-0"
    return [int(step) for step in path.read_text().split()] if path.exists() else []


def measure(way, arguments, num_ranks, case, alone):
    """Return the figures of one interruption. *alone* is the folder of the training that was left alone."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codes, ended = live(folder, way, arguments, num_ranks, CASES[case])
        signaled = float((folder / "signaled").read_text())
        before = steps_of(folder)
        again, _ = live(folder, way, arguments, num_ranks)
        after = steps_of(folder)[len(before) :]
        row = {"codes": ", ".join("hangs" if code is None else str(code) for code in codes)}
        row["leaves_s"] = None if None in codes else ended - signaled
        if any(again):
            return row | {"lost": None, "after": f"the next process fails with {', '.join(map(str, again))}"}
        finals = [torch.load(each / "final.pt", weights_only=True) for each in (alone, folder)]
        is_equal = all(finals[0][name].equal(finals[1][name]) for name in finals[0])
        return row | {"lost": before[-1] - after[0] + 1 if after else 0, "after": "equal" if is_equal else "differs"}


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], help="interruptions")
    parser.add_argument("--steps", type=int, default=240, help="steps of the training")
    parser.add_argument("--step-ms", type=float, default=50.0, help="length of a batch")
    parser.add_argument("--evaluation", type=int, default=200, help="batches of an evaluation")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds from a signal until a rank counts as hanging"
    )


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("ranks", "steps", "step_ms", "evaluation")}
    report = Report("interruptions", settings, COLUMNS)
    for num_ranks in arguments.ranks:
        for way, title in WAYS.items():
            with tempfile.TemporaryDirectory() as name:
                alone = Path(name)
                codes, _ = live(alone, way, arguments, num_ranks)
                if any(codes):
                    report.fail(title, (alone / "output-0.txt").read_text())
                    continue
                for case in arguments.cases:
                    if max(CASES[case][3]) < num_ranks:
                        row = measure(way, arguments, num_ranks, case, alone)
                        report.rows.append({"way": f"{title}, {ranks_of(num_ranks)}, {CASES[case][0]}", **row})
                        print(report.rows[-1], flush=True)
    return report
