"""
Command line ``spot VERB``, with one module per verb.

Each verb runs on the main thread of a process of its own. The process of ``spot run`` exists for the whole training,
often as process 1 of a container, so this package must never import torch. A verb checks its arguments and calls
another package; it decides nothing else. Begin with :func:`main`, then read :mod:`.run`.
"""

from __future__ import annotations

import sys

from .. import __version__


def main() -> None:
    """Run the command line. This function is the entry point of ``spot``."""
    try:
        import typer
    except ImportError:
        sys.exit("spot needs typer: pip install 'spot_plugins[cli]'")
    from . import cp, doctor, drill, export, ls, notice, plan, prices, prune, report, run, show, verify, watch

    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,  # because boxes make a log hard to read
        pretty_exceptions_enable=False,  # because they print the values of variables, which may be secret
        help="Train on machines that the provider can take away.",
    )

    @app.callback(invoke_without_command=True)
    def version(show: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if show:
            typer.echo(__version__)
            raise typer.Exit

    app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run.run)
    app.command("drill", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(
        drill.drill
    )
    app.command("notice")(notice.notice)
    app.command("doctor")(doctor.doctor)
    app.command("ls")(ls.ls)
    app.command("show")(show.show)
    app.command("verify")(verify.verify)
    app.command("prune")(prune.prune)
    app.command("cp")(cp.cp)
    app.command("export")(export.export)
    app.command("plan")(plan.plan)
    app.command("prices")(prices.prices)
    app.command("report")(report.report)
    app.command("watch")(watch.watch)
    app(prog_name="spot")
