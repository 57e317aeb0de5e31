"""``python -m gpu``: all checks, or some of them by number."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from .checks import CHECKS
from .runner import run, run_child
from .settings import Settings
from .table import Table


def main() -> int:
    """Parse the command line, and run the checks."""
    if sys.argv[1:2] == ["--child"]:
        name, rows, settings = sys.argv[2:]
        return run_child(name, rows, Settings.decode(settings))
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the checks that run are killed, and nothing is left
    if arguments.out:
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
        (Path(arguments.out) / "gpu.log").write_text("")
    scale = "tiny" if arguments.device == "cpu" else "small" if arguments.small else "full"
    settings = Settings(
        device=arguments.device,
        scale=scale,
        folder=arguments.folder or tempfile.gettempdir(),
        memory_gib=arguments.memory_gib,
    )
    started = time.monotonic()
    table = Table(arguments.out, {"device": arguments.device, "scale": scale})
    run(settings, arguments.parts, arguments.out, arguments.max_s, table)
    print(f"\n{table.markdown()}")
    verdicts = [row.verdict.partition(":")[0] for row in table.rows]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in ("ok", "below", "failed", "not here"))
    print(f"{arguments.device}, {scale}: {counts}; {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu", description=__doc__)
    numbers = sorted({check.number for check in CHECKS})
    parser.add_argument("--parts", type=_numbers, default=set(numbers), help="checks by number, such as 1,2,10")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda by default if there is one")
    parser.add_argument("--small", action="store_true", help="states of about 1 GB; a CPU has tiny ones anyway")
    parser.add_argument("--out", help="folder for gpu.md, gpu.json and gpu.log; none by default")
    parser.add_argument("--folder", help="where the checks save; the system's temporary folder by default")
    parser.add_argument("--memory-gib", type=float, help="memory of the machine, if the kernel reports too little")
    parser.add_argument("--max-s", type=float, default=470.0, help="seconds after which all checks are killed")
    arguments = parser.parse_args()
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments


def _numbers(text: str) -> set[int]:
    return {int(number) for number in text.split(",")}


if __name__ == "__main__":
    sys.exit(main())
