"""
Coverage-guided fuzzing of the reader of steps: atheris draws bytes, of which a grammar makes steps (test_grammar.py).

``python tests/fuzz_steps.py -max_total_time=600`` fuzzes for ten minutes, as ``make fuzz`` does. It ends with another
code than 0 at the first step that is neither read as it says nor given up for the step before. The flags are those of
libFuzzer. What is fuzzed can be changed by a program that calls :func:`fuzz`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

NUM_SEEDS = 20
SEED_BYTES = 4096
"""Size of the first inputs. From much less, hypothesis makes no step at all."""


def fuzz(flags):
    """Fuzz with *flags* until one of them or a failure ends this process."""
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "unit" / "resume")]
    with atheris.instrument_imports(include=["spot_plugins.format", "spot_plugins.resume", "spot_plugins.state"]):
        import test_grammar

    step_of = test_grammar.test_many_steps_are_read_as_they_say_or_cost_one_step.hypothesis.fuzz_one_input
    with tempfile.TemporaryDirectory() as corpus:
        drawn = random.Random(7)
        for number in range(NUM_SEEDS):
            Path(corpus, str(number)).write_bytes(drawn.randbytes(SEED_BYTES))
        own = ["-len_control=0", f"-max_len={2 * SEED_BYTES}", "-rss_limit_mb=0", corpus]
        atheris.Setup([sys.argv[0], *flags, *own], step_of)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1:])
