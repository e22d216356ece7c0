"""What the registry holds, and a person's word on it: the tag `review` of a model version, from a shell.

python jobs/review.py                # every policy version: status, verdict, review, reasons
python jobs/review.py --approve 3    # it is promoted if it passed the gate
python jobs/review.py --reject 3     # it is not
"""

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
    approve: Annotated[int | None, typer.Option(metavar="VERSION", help="Policy version that users may meet.")] = None,
    reject: Annotated[int | None, typer.Option(metavar="VERSION", help="Policy version that they may not.")] = None,
) -> None:
    """Show the registry, or approve or reject a policy version, where `promote.require_review` makes the training loop wait."""
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
        _show(registry)


def _show(registry: "Registry") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("policy", "status", "verdict", "review", "why", box=None)
    for each in registry.versions():
        table.add_row(f"v{each.policy_version}", each.status, each.decision, each.review, each.reasons)
    Console().print(table)


if __name__ == "__main__":
    command(main)
