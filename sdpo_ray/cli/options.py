"""Options that the commands share, and their error output: one plain sentence instead of a traceback."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.help_text import HelpCommand
from sdpo_ray.cli.run_files import LAPTOP, complete_override, complete_run_file, locate_run_file
from sdpo_ray.config import Run, load_run, to_json
from sdpo_ray.errors import SdpoError

__all__ = ["LAPTOP", "Overrides", "PrintConfig", "RunFile", "command", "plain_errors", "read_run", "single_command"]

RunFile = Annotated[
    Path,
    typer.Option(
        "--run",
        help="TOML run file; jobs/recipes/*.toml are installed with the commands.",
        callback=locate_run_file,
        autocompletion=complete_run_file,
        show_default="jobs/recipes/laptop.toml",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one key of the run file; may be repeated.",
        autocompletion=complete_override,
    ),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved run as JSON and stop.")]


def read_run(run: Path, overrides: list[str] | None, print_config: bool) -> Run:
    """The resolved run. With `print_config`, print it and raise `typer.Exit`."""
    with plain_errors():
        resolved = load_run(run, overrides or ())
    if print_config:
        typer.echo(to_json(resolved))
        raise typer.Exit
    return resolved


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an `SdpoError` of the block without a traceback, and exit with status 2."""
    try:
        yield
    except SdpoError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


def single_command(function: Callable[..., None]) -> typer.Typer:
    """A command line with `function` as its only command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=HelpCommand)(function)
    return app


def command(function: Callable[..., None]) -> None:
    """Run `function` as the command line of this process: what `python jobs/NAME.py` does."""
    single_command(function)()
