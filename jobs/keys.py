"""Manage the keys of a run: API keys of tenants, and the keys of pseudonyms. Running replicas follow at once."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.capture.api_key_lines import api_key_lines
from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.cli.help_text import HelpCommand
from sdpo_ray.cli.options import LAPTOP, Overrides, RunFile, plain_errors, read_run

_EXAMPLE = "\b\nsdpo keys add --tenant shop --requests-per-minute 600\nsdpo keys list"
_LIMIT = "{}; 0 for no limit. Default: that of the section `serve.limits` of the run file."
_HELP = f"Manage the API keys of tenants and the keys of users' pseudonyms.\n\n{_EXAMPLE}"
app = typer.Typer(help=_HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command(cls=HelpCommand)
def rotate(run: RunFile = LAPTOP, overrides: Overrides = None) -> None:
    """Make a new key for users' pseudonyms.

    Every user has a new pseudonym from now on, and counts as a new user. Existing rows keep theirs, and erasure finds
    a user under every key. Conversations that have begun still pair.
    """
    with plain_errors():
        pseudonyms = Pseudonyms.load(read_run(run, overrides, False).layout.pseudonym_keys).rotate()
    typer.echo(f"pseudonyms are made with key {pseudonyms.key_ids[0]} now, the newest of {len(pseudonyms.key_ids)}")


@app.command(cls=HelpCommand)
def add(
    tenant: Annotated[str, typer.Option(help="Tenant of the requests that carry this key.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help=_LIMIT.format("Requests a minute"))] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help=_LIMIT.format("Tokens a minute"))] = None,
    concurrent: Annotated[int | None, typer.Option(min=0, help=_LIMIT.format("Concurrent requests"))] = None,
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
) -> None:
    """Make an API key for a tenant and print it. Only its digest is stored, so it is never shown again.

    From the first key on, requests without a key are answered with 401.
    """
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    with plain_errors():
        before = _api_keys(run, overrides)
        key, after = before.add(tenant, **limits, concurrent=concurrent)
    typer.echo(key)
    typer.echo(f"key {after.keys[-1].key_id} of {tenant}; it is not shown again", err=True)
    if not before.required:
        typer.echo("every request needs a key from now on", err=True)


@app.command("list", cls=HelpCommand)
def list_keys(run: RunFile = LAPTOP, overrides: Overrides = None) -> None:
    """List the API keys by id, tenant, day and own limits."""
    with plain_errors():
        for line in api_key_lines(_api_keys(run, overrides)):
            typer.echo(line)


@app.command(cls=HelpCommand)
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id as `sdpo keys list` shows it.")],
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
) -> None:
    """Refuse an API key from now on. A run whose last key is revoked answers every request with 401."""
    with plain_errors():
        typer.echo(f"key {key_id} is revoked; {len(_api_keys(run, overrides).revoke(key_id).keys)} left")


def _api_keys(run: Path, overrides: list[str] | None) -> ApiKeys:
    return ApiKeys.load(read_run(run, overrides, False).layout.api_keys)


if __name__ == "__main__":
    app()
