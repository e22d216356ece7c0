"""Personal policies: a LoRA adapter over the shared policy for one user, or one tenant, learned from them alone.

    python jobs/personalize.py --user ann@example.org      # one user, named as the client sends it
    python jobs/personalize.py --tenant shop --whole-tenant
    python jobs/personalize.py --all --every-s 600         # whoever has said enough, for as long as it runs
    python jobs/personalize.py --list
    python jobs/personalize.py --forget --user ann@example.org

What was learned is served only where the user gained on conversations that it never saw, and nothing was broken for
it; else, and whenever the shared policy moves on, the shared one answers. Serving must be up, with `serve.adapters`.
It may be run beside the training loop.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError, DataError, NotReady

if TYPE_CHECKING:
    from sdpo_ray.personal.store import Attempt
    from sdpo_ray.personal.trainer import ProgressCallbacks

User = Annotated[str | None, typer.Option(help="The name that the client sends as `user`, as it sends it.")]
Tenant = Annotated[str, typer.Option(help="Whose user it is; without API keys everybody is of the tenant default.")]
Whole = Annotated[bool, typer.Option("--whole-tenant", help="One policy for everybody of --tenant.")]
All = Annotated[
    bool, typer.Option("--all", help="Whoever has said enough since the last time, or whose policy is stale.")
]
EveryS = Annotated[float, typer.Option(help="With --all: go on, looking every so many seconds; 0 looks once.", min=0)]
List = Annotated[bool, typer.Option("--list", help="Show what there is, and stop.")]
Forget = Annotated[
    bool,
    typer.Option("--forget", help="Remove somebody's policy. What they said stays, and --all may learn it again."),
]


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: User = None,
    tenant: Tenant = "default",
    whole_tenant: Whole = False,
    everybody: All = False,
    every_s: EveryS = 0,
    show: List = False,
    forget: Forget = False,
) -> None:
    """Learn a policy for one user or tenant over the present champion, judge it, and serve it to them.

    The run file's section `personal` says from how much, how, and what it has to gain. Where it gained nothing beyond
    doubt on conversations that were held out, or broke something, nothing is served, and the reasons are printed.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if sum((bool(user) or whole_tenant, everybody, show)) != 1 or (forget and (everybody or show)):
            raise ConfigError("give one of --user, --whole-tenant, --all and --list; --forget goes with the first two")
        if every_s and not everybody:
            raise ConfigError("--every-s belongs to --all")
        if show:
            _show(resolved)
        elif forget:
            _forget(resolved, tenant, user, whole_tenant)
        elif everybody:
            _learn_all(resolved, every_s)
        else:
            _learn_one(resolved, tenant, user, whole_tenant)


def _learn_one(run: Run, tenant: str, user: str | None, whole_tenant: bool) -> None:
    from sdpo_ray.cluster.ray_session import ray_session
    from sdpo_ray.personal.config import require_adapters
    from sdpo_ray.personal.owners import owner_named
    from sdpo_ray.personal.trainer import PersonalTrainer

    require_adapters(run)
    owner = owner_named(run.layout, tenant=tenant, user=user, whole_tenant=whole_tenant)
    with ray_session(run), _progress() as heard:
        attempt = PersonalTrainer(run, heard).learn(owner)
    _say(attempt)


def _learn_all(run: Run, every_s: float) -> None:
    from sdpo_ray.cluster.ray_session import ray_session
    from sdpo_ray.personal.config import require_adapters
    from sdpo_ray.personal.trainer import PersonalTrainer

    require_adapters(run)
    with ray_session(run), _progress() as heard:
        # Ray's own handler, set a line above, ends the process with status 15.
        signal.signal(signal.SIGTERM, _stop)
        personalizer = PersonalTrainer(run, heard)
        while True:
            for owner in personalizer.owners_due():
                try:
                    _say(personalizer.learn(owner))
                except (DataError, NotReady) as error:
                    typer.echo(f"{owner.digest[:12]}: {error}", err=True)
            if not every_s:
                return
            heard.says(f"looking again every {every_s:g} s")
            time.sleep(every_s)


def _forget(run: Run, tenant: str, user: str | None, whole_tenant: bool) -> None:
    from sdpo_ray.io.locks import file_lock
    from sdpo_ray.personal.owners import owner_named
    from sdpo_ray.personal.trainer import forget_owners, runs_of

    layout = run.layout
    owner = owner_named(layout, tenant=tenant, user=user, whole_tenant=whole_tenant)
    runs = runs_of(run, layout)
    with file_lock(layout.personal):
        gone = forget_owners(layout, runs, (owner.digest, *owner.former))
    typer.echo("removed: the shared policy answers from now on" if gone else "there was nothing to remove")


def _show(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from sdpo_ray.personal.store import known_owners, newest_attempt, served_policy
    from sdpo_ray.promote.release import served_release

    layout = run.layout
    champion = served_release(layout)
    table = Table("owner", "serves", "is", "last attempt", "from", "because", box=None)
    for owner in known_owners(layout):
        policy, last = served_policy(layout, owner), newest_attempt(layout, owner)
        fresh = policy is not None and champion is not None and policy.base_version == champion.policy_version
        table.add_row(
            owner[:12],
            policy.name if policy is not None else "the shared policy",
            "" if policy is None else "fresh" if fresh else "stale: the shared policy answers",
            f"v{last.version} over v{last.base_version}: {last.verdict}" if last is not None else "under way",
            f"{len(last.snapshot.interaction_ids)} interactions" if last is not None else "",
            "; ".join(last.reasons) if last is not None else "",
        )
    Console().print(table if table.row_count else "no personal policies yet")


@contextmanager
def _progress() -> "Iterator[ProgressCallbacks]":
    """A bar on standard error, and who moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from sdpo_ray.personal.trainer import ProgressCallbacks

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=None)
        yield ProgressCallbacks(
            says=lambda words: progress.reset(task, description=words, total=None),
            steps=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _say(attempt: "Attempt") -> None:
    """The verdict; it names nobody."""
    typer.echo(f"{attempt.owner[:12]} v{attempt.version} over v{attempt.base_version}: {attempt.verdict}")
    for reason in attempt.reasons:
        typer.echo(f"    {reason}")
    if attempt.name:
        typer.echo(f"    {attempt.name} answers from now on, until the shared policy moves on")


def _stop(signum: int, frame: FrameType | None) -> None:
    typer.echo("stopped; an update under way begins anew the next time")
    raise SystemExit(0)


if __name__ == "__main__":
    command(main)
