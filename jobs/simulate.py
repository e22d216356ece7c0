"""Let simulated users talk to the served policy over HTTP with the stock `openai` client."""

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
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint. Default: that of the run.")] = "",
    conversations: Annotated[int, typer.Option(help="Stop after so many; 0 runs until Ctrl-C.")] = 0,
    stats: Annotated[Path | None, typer.Option(help="Write counts into this JSON file while running.")] = None,
) -> None:
    """Let simulated users with one taste talk to the served policy.

    \b
    sdpo simulate --run my.toml --conversations 24

    They ask, read the answer, react to it in the next message and leave. Prints conversations, requests and failures.
    `OPENAI_API_KEY` is their key if the run asks for one; the section `simulate` of the run file says how many talk.
    """
    resolved = read_run(run, overrides, print_config)
    base_url = url or f"{resolved.serve.url}/v1"
    with plain_errors():
        traffic = asyncio.run(talk_all(resolved, base_url=base_url, conversations=conversations, stats=stats))
    typer.echo(f"{traffic.conversations} conversations, {traffic.requests} requests, {traffic.failed} failed")
    for error, count in traffic.errors.items():
        typer.echo(f"{count} x {error}", err=True)


if __name__ == "__main__":
    command(main)
