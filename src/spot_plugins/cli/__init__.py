"""The command line: ``spot VERB``, one module per verb."""

from __future__ import annotations

import sys

from .. import __version__


def main() -> None:
    """Entry point of ``spot``."""
    try:
        import typer
    except ImportError:
        sys.exit("spot needs typer: pip install 'spot_plugins[cli]'")
    from . import notice, run

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # boxes are no help in a log
        pretty_exceptions_enable=False,  # nor are the values of variables, which may be secret
        help="Train on machines that can be taken away.",
    )

    @app.callback(invoke_without_command=True)
    def version(show: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if show:
            typer.echo(__version__)
            raise typer.Exit

    app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run.run)
    app.command("notice")(notice.notice)
    app(prog_name="spot")
