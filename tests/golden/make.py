"""
Write ``data/`` anew. Run by hand, and only when the stored format changes on purpose::

    PYTHONPATH=tests python -m golden.make

The data of an older format must then stay readable: give the new data a folder of its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from golden.programs import PROGRAMS

DATA = Path(__file__).parent / "data"
HOSTS = ("accelerate", "lightning", "numpy", "torch")
"""The packages that decide some of the state."""


def installed() -> dict[str, str]:
    """Return the versions of :data:`HOSTS`."""
    return {name: version(name).partition("+")[0] for name in HOSTS}


def main() -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    for name, program in PROGRAMS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            program(f"file://{run}", True)
            for path in sorted(path for path in run.rglob("*") if path.is_file()):
                kept = DATA / name / path.relative_to(run)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, kept)
        for path in DATA.glob(f"{name}/attempts/*.json"):  # the name of the machine is nobody's business
            life = {**json.loads(path.read_bytes()), "host": "golden"}
            path.write_text(json.dumps(life, sort_keys=True, separators=(",", ":")) + "\n")
    (DATA / "written_with.json").write_text(json.dumps(installed(), indent=2) + "\n")


if __name__ == "__main__":
    main()
