"""Train, list and remove personal policies: LoRA adapters over the shared policy for one user or one tenant."""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError

User = Annotated[str | None, typer.Option(help="Name of the user, exactly as the client sends it in `user`.")]
Tenant = Annotated[str, typer.Option(help="Tenant of the user; a run without API keys has only the tenant default.")]
Whole = Annotated[bool, typer.Option("--whole-tenant", help="One policy for all users of --tenant.")]
All = Annotated[bool, typer.Option("--all", help="Every user with enough new interactions or a stale policy.")]
EveryS = Annotated[float, typer.Option(help="With --all: repeat after so many seconds; 0 runs once.", min=0)]
List = Annotated[bool, typer.Option("--list", help="List the personal policies and stop.")]
Remove = Annotated[
    bool, typer.Option("--remove", help="Remove the policy of --user or --whole-tenant; their interactions stay.")
]


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: User = None,
    tenant: Tenant = "default",
    whole_tenant: Whole = False,
    all_users: All = False,
    every_s: EveryS = 0,
    show: List = False,
    remove: Remove = False,
) -> None:
    """Train a policy for one user or one tenant, and serve it to them if they gain by it.

    \b
    sdpo personalize --user ann@example.org
    sdpo personalize --tenant shop --whole-tenant
    sdpo personalize --all --every-s 600
    sdpo personalize --list

    Prints the verdict and its reasons. A policy is served if the user gains on held-out conversations and nothing
    else gets worse; otherwise, and after each new release until the next training, the shared policy answers. The
    section `personal` of the run file has the bounds. Serving must be up, with `serve.adapters` set. May run beside
    the training loop.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if sum((bool(user) or whole_tenant, all_users, show)) != 1 or (remove and (all_users or show)):
            raise ConfigError("give one of --user, --whole-tenant, --all and --list; --remove goes with the first two")
        if every_s and not all_users:
            raise ConfigError("--every-s belongs to --all")
        from sdpo_ray.personal.policy_table import print_policies
        from sdpo_ray.personal.train_owners import remove_policy, train_due_owners, train_owner

        if show:
            print_policies(resolved.layout)
        elif remove:
            remove_policy(resolved, tenant, user, whole_tenant)
        elif all_users:
            train_due_owners(resolved, every_s)
        else:
            train_owner(resolved, tenant, user, whole_tenant)


if __name__ == "__main__":
    command(main)
