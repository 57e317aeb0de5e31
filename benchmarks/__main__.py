"""``python -m benchmarks VERB``."""

from __future__ import annotations

import argparse
from importlib import import_module

VERBS = (
    "stall",
    "overhead",
    "durable",
    "restore",
    "export",
    "restart",
    "agree",
    "scale",
    "fleet",
    "board",
    "position",
    "interruptions",
)


def main():
    # Imported here, because a process that another checkpointer starts imports this file, and would pay for all of it.
    modules = {name: import_module(f"benchmarks.{name}") for name in VERBS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, beside others, in one run.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for name, module in modules.items():
        verb = verbs.add_parser(
            name,
            help=module.__doc__.strip().splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.add_argument("--out", help="folder for JSON and charts, such as benchmark-output; none by default")
    arguments = parser.parse_args()
    report = modules[arguments.verb].run(arguments)
    report.show()
    for path in report.write(arguments.out) if arguments.out else ():
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
