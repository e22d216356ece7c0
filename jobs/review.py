"""Show the registered policy versions, and record a reviewer's decision: the tag `review` of a model version."""

from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from sdpo_ray.promote.registry import Registry


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    approve: Annotated[int | None, typer.Option(metavar="VERSION", help="Policy version that may be served.")] = None,
    reject: Annotated[int | None, typer.Option(metavar="VERSION", help="Policy version that may not.")] = None,
) -> None:
    """Show the registered policy versions; approve or reject one.

    \b
    sdpo review                # every version: status, verdict, review, reasons
    sdpo review --approve 3    # v3 is promoted if it passed the gate

    With `promote.require_review` in the run file, the training loop waits for this decision before it promotes.
    """
    resolved = read_run(run, overrides, print_config)
    from sdpo_ray.promote.registry import Registry

    with plain_errors():
        if approve is not None and reject is not None:
            raise ConfigError("approve or reject, one at a time")
        registry = Registry.of(resolved)
        if approve is not None:
            registry.tag(approve, "review", "approved")
        if reject is not None:
            registry.tag(reject, "review", "rejected")
        _print(registry)


def _print(registry: "Registry") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("policy", "status", "verdict", "review", "why", box=None)
    for each in registry.versions():
        table.add_row(f"v{each.policy_version}", each.status, each.decision, each.review, each.reasons)
    Console().print(table)


if __name__ == "__main__":
    command(main)
