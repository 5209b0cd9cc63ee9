"""The command line. Heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .info import info
from .schedule import schedule
from .train import train
from .warmup import warmup

app = typer.Typer(
    name="fastopt",
    help="Keras's optimizers as fused Numba kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command(context_settings={"ignore_unknown_options": True})(schedule)
app.command()(warmup)
app.command()(bench)
app.command()(info)


def _show_version(wanted: bool) -> None:
    if wanted:
        from fastopt import __version__

        typer.echo(f"fastopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
