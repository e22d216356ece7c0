"""What every job's command line shares: the run file, overrides, and errors in plain words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.config import Run, load_run, to_json
from sdpo_ray.errors import SdpoError

LAPTOP = Path(__file__).parents[2] / "jobs" / "recipes" / "laptop.toml"

RunFile = Annotated[Path, typer.Option("--run", help="TOML run file; see jobs/recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key of the run file; may be repeated."),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved run as JSON, and stop.")]


def read_run(run: Path, overrides: list[str] | None, print_config: bool) -> Run:
    """The resolved run; ends the program after printing it where that was asked for."""
    with plain_errors():
        resolved = load_run(run, overrides or ())
    if print_config:
        typer.echo(to_json(resolved))
        raise typer.Exit
    return resolved


@contextmanager
def plain_errors() -> Iterator[None]:
    """An error raised on purpose is for the user: its words, no traceback, exit status 2."""
    try:
        yield
    except SdpoError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


def command(function: Callable[..., None]) -> None:
    """Run one function as a whole command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    app()
