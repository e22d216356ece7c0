"""Train the policy of one owner, or of every owner that is due, on the Ray cluster; remove an owner's policy."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from sdpo_ray.cluster.ray_session import ray_session
from sdpo_ray.config import Run
from sdpo_ray.errors import DataError, NotReady
from sdpo_ray.io.locks import file_lock
from sdpo_ray.personal.config import require_adapters
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.owners import owner_named
from sdpo_ray.personal.publish import remove_owners
from sdpo_ray.personal.store import Attempt
from sdpo_ray.personal.trainer import PersonalTrainer, ProgressCallbacks


def train_owner(run: Run, tenant: str, user: str | None, whole_tenant: bool) -> None:
    """Train and judge one owner's policy, and print the verdict. Raises ConfigError if the run serves no adapters."""
    require_adapters(run)
    owner = owner_named(run.layout, tenant=tenant, user=user, whole_tenant=whole_tenant)
    with ray_session(run), _progress() as callbacks:
        attempt = PersonalTrainer(run, callbacks).learn(owner)
    _print(attempt)


def train_due_owners(run: Run, every_s: float) -> None:
    """Train each owner that is due; with `every_s`, repeat until SIGTERM. An owner that cannot be trained is skipped.

    Raises ConfigError if the run serves no adapters.
    """
    require_adapters(run)
    with ray_session(run), _progress() as callbacks:
        # After `ray.init`, whose own handler ends the process with status 15.
        signal.signal(signal.SIGTERM, _stop)
        trainer = PersonalTrainer(run, callbacks)
        while True:
            for owner in trainer.owners_due():
                try:
                    _print(trainer.learn(owner))
                except (DataError, NotReady) as error:
                    typer.echo(f"{owner.digest[:12]}: {error}", err=True)
            if not every_s:
                return
            callbacks.on_step(f"next round in {every_s:g} s")
            time.sleep(every_s)


def remove_policy(run: Run, tenant: str, user: str | None, whole_tenant: bool) -> None:
    """Remove an owner's policy under every pseudonym, from disk and MLflow, and print whether there was one."""
    layout = run.layout
    owner = owner_named(layout, tenant=tenant, user=user, whole_tenant=whole_tenant)
    runs = PersonalRuns.of(run)
    with file_lock(layout.personal):
        removed = remove_owners(layout, runs, (owner.digest, *owner.former))
    typer.echo("removed: the shared policy answers from now on" if removed else "there was nothing to remove")


@contextmanager
def _progress() -> Iterator[ProgressCallbacks]:
    """A progress bar on standard error, and the callbacks that move it."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=None)
        yield ProgressCallbacks(
            on_step=lambda step: progress.reset(task, description=step, total=None),
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _print(attempt: Attempt) -> None:
    """Print the verdict without the user's name."""
    typer.echo(f"{attempt.owner[:12]} v{attempt.version} over v{attempt.base_version}: {attempt.verdict}")
    for reason in attempt.reasons:
        typer.echo(f"    {reason}")
    if attempt.name:
        typer.echo(f"    {attempt.name} answers from now on, until the next release of the shared policy")


def _stop(signum: int, frame: FrameType | None) -> None:
    typer.echo("stopped; an unfinished update starts again the next time")
    raise SystemExit(0)
