"""The command line. Heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .bench import bench
from .characters import degrade_gracefully
from .info import info
from .schedule import schedule
from .train import train
from .warmup import warmup


class _PlainFlags:
    """Shows a flag as what it is, an option without a value: not all versions of typer do."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    pass


class _Group(_PlainFlags, TyperGroup):
    pass


app = typer.Typer(
    name="fastopt",
    cls=_Group,
    help="Keras's optimizers as fused Numba kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command(cls=_Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command(cls=_Command, context_settings={"ignore_unknown_options": True})(schedule)
app.command(cls=_Command)(warmup)
app.command(cls=_Command)(bench)
app.command(cls=_Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(info)


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
    degrade_gracefully()
    app()
