"""People who talk to the served policy where no real ones do: persona users over plain HTTP.

They use the stock `openai` client and send nothing but the conversation and a name: ask, read, react, go.
`OPENAI_API_KEY` is their key, where the run asks for one.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.simulate.http_clients import talk_all


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint; default: the run's own.")] = "",
    conversations: Annotated[int, typer.Option(help="Stop after so many; 0 goes on until Ctrl-C.")] = 0,
    stats: Annotated[Path | None, typer.Option(help="Keep counts in this JSON file.")] = None,
) -> None:
    """Let simulated people with one taste talk to the served policy."""
    resolved = read_run(run, overrides, print_config)
    base_url = url or f"{resolved.serve.url}/v1"
    with plain_errors():
        traffic = asyncio.run(talk_all(resolved, base_url=base_url, conversations=conversations, stats=stats))
    typer.echo(f"{traffic.conversations} conversations, {traffic.requests} requests, {traffic.failed} failed")
    for error, count in traffic.errors.items():
        typer.echo(f"{count} x {error}", err=True)


if __name__ == "__main__":
    command(main)
