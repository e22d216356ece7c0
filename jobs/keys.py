"""The keys of a run: those that users are made unrecognisable with, and those that tenants call with.

A running replica follows every change at once.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, RunFile, plain_errors
from sdpo_ray.config import load_run
from sdpo_ray.io.paths import Layout

_OWN = "{}, 0 for any; [serve.limits] of the run where it is not given."
app = typer.Typer(
    help="The keys of a run: those of pseudonyms, and those that tenants call with.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.command()
def rotate(run: RunFile = LAPTOP, overrides: Overrides = None) -> None:
    """Make a new key for users' pseudonyms.

    From now on everybody has a new pseudonym, and counts as somebody new. Rows that exist keep theirs, and erasure
    finds a user under every key. Conversations that are under way still pair.
    """
    from sdpo_ray.capture.pseudonyms import Pseudonyms

    with plain_errors():
        pseudonyms = Pseudonyms.load(_layout(run, overrides).pseudonym_keys).rotate()
    typer.echo(f"pseudonyms are made with key {pseudonyms.key_ids[0]} now, the newest of {len(pseudonyms.key_ids)}")


@app.command()
def add(
    tenant: Annotated[str, typer.Option(help="Whose requests they are that come with this key.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help=_OWN.format("Requests a minute"))] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help=_OWN.format("Tokens a minute"))] = None,
    concurrent: Annotated[int | None, typer.Option(min=0, help=_OWN.format("Requests at once"))] = None,
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
) -> None:
    """Make a key of the API for a tenant, and print it: it is kept nowhere and never shown again.

    With the first key the run begins to ask for one: whoever calls without is refused with 401.
    """
    from sdpo_ray.capture.api_keys import ApiKeys

    with plain_errors():
        before = ApiKeys.load(_layout(run, overrides).api_keys)
        key, now = before.add(
            tenant,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent=concurrent,
        )
    typer.echo(key)
    typer.echo(f"key {now.keys[-1].key_id} of {tenant}; it is not shown again", err=True)
    if not before.required:
        typer.echo("every request needs a key from now on", err=True)


@app.command("list")
def list_keys(run: RunFile = LAPTOP, overrides: Overrides = None) -> None:
    """List the keys of the API by id, tenant, day and limits of their own; the keys themselves are kept nowhere."""
    from sdpo_ray.capture.api_keys import ApiKeys

    with plain_errors():
        known = ApiKeys.load(_layout(run, overrides).api_keys)
    if not known.required:
        typer.echo("no keys: everybody may call, as tenant default")
    for key in known.keys:
        own = {
            "requests/min": key.requests_per_minute,
            "tokens/min": key.tokens_per_minute,
            "at once": key.concurrent,
        }
        limits = "".join(f"  {'any' if n == 0 else n} {what}" for what, n in own.items() if n is not None)
        typer.echo(f"{key.key_id}  {key.tenant}  {datetime.fromtimestamp(key.made_at_s, UTC):%Y-%m-%d}{limits}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `list` shows it.")],
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
) -> None:
    """Refuse a key of the API from now on. After the last one the run still asks for keys, and nobody has one."""
    from sdpo_ray.capture.api_keys import ApiKeys

    with plain_errors():
        now = ApiKeys.load(_layout(run, overrides).api_keys).revoke(key_id)
    typer.echo(f"key {key_id} is revoked; {len(now.keys)} left")


def _layout(run: Path, overrides: list[str] | None) -> Layout:
    resolved = load_run(run, overrides or ())
    return resolved.layout


if __name__ == "__main__":
    app()
