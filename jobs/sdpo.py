"""The command `sdpo`: every other command of this folder as a verb, imported when it is called."""

from importlib.metadata import version
from typing import Annotated

import typer

from sdpo_ray.cli.lazy_group import LazyGroup, Verb

PANELS = {
    "Run": {
        "demo": "Run the whole loop on this machine in about eight minutes and check what it shows.",
        "deploy": "Serve the policy of a run on the Ray cluster that is up.",
        "continual": "Run the training loop: collect interactions, train, evaluate, decide, release.",
        "personalize": "Train a policy for one user or one tenant, and serve it to them if they gain by it.",
        "simulate": "Let simulated users with one taste talk to the served policy.",
    },
    "Review": {
        "review": "Show the registered policy versions; approve or reject one.",
        "rollback": "Serve an earlier release again.",
        "explain": "Draw how an interaction changes the probability of each token of its answer.",
        "lineage": "Show what was learned from a user or a turn, or what a release was learned from.",
    },
    "Data": {
        "keys": "Manage the API keys of tenants and the keys of users' pseudonyms.",
        "erase": "Erase a user from everything that a run keeps, and list the policies that learned from them.",
        "curate": "Bring the tables up to date once: event log to turns to interactions.",
        "export": "Write interactions, preferences or labels for other trainers.",
        "backup": "Copy a run to another directory while it serves and learns.",
    },
    "Learn offline": {
        "import-logs": "Import conversation logs as a snapshot to train on, or into a run's event log.",
        "distill": "Train one candidate from a snapshot, without serving, evaluation or gate.",
    },
}
VERBS = tuple(
    Verb(name=name, module=f"jobs.{name.replace('-', '_')}", panel=panel, help=help_)
    for panel, commands in PANELS.items()
    for name, help_ in commands.items()
)


class SdpoGroup(LazyGroup):
    """The verbs of `sdpo`."""

    verbs = VERBS


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"sdpo-ray {version('sdpo-ray')}")
        raise typer.Exit


app = typer.Typer(cls=SdpoGroup, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def sdpo(
    version_: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve a language model, learn from its users' reactions, and release each update that a gate accepts.

    \b
    sdpo demo                       all of it on this machine, with a small model
    ray start --head                your own model, on a cluster:
    sdpo deploy --run my.toml       serve it on http://127.0.0.1:8000/v1
    sdpo continual --run my.toml    learn from its users

    `sdpo COMMAND --help` shows what a command does, with an example.
    """


if __name__ == "__main__":
    app()
