"""One update offline: learn from a snapshot on disk, such as `jobs/import_logs.py` writes, and seal a candidate.

    python jobs/distill.py --run jobs/recipes/laptop.toml --snapshot runs/logs --out runs/v0001

It runs on the Ray cluster that is there, else on one that it starts and stops. With --dry-run it says what the update
would need, and needs neither Ray nor the weights. Broken off, it goes on where it was when it is started again.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commandline import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.config import Run
from sdpo_ray.distill.job import CANDIDATE_FILE
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import BASE_VERSION, Candidate, Fingerprint, Release, Snapshot

if TYPE_CHECKING:
    from rich.table import Table


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    snapshot: Annotated[
        Path | None, typer.Option(help="Directory with snapshot.json and interactions.parquet.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the candidate, where all workers see it.")] = None,
    parent: Annotated[Path | None, typer.Option(help="Policy to go on from. Default: the run's base.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what each worker would need, and stop.")] = False,
    gpu_gib: Annotated[
        float | None, typer.Option(min=0, help="Memory to judge a dry run by. Default: that of a GPU that is here.")
    ] = None,
) -> None:
    """Train one update on a snapshot, without serving, examination or gate."""
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        drawn = _snapshot(snapshot) if snapshot is not None else None
        if dry_run:
            from jobs.dryrun import show

            show(resolved, drawn, gpu_gib)
            return
        if drawn is None or out is None:
            raise ConfigError("give --snapshot DIR and --out DIR, or --dry-run")
        candidate = _train(resolved, drawn, _parent(parent or resolved.base), out)
    from rich.console import Console

    Console().print(_learned(candidate, len(drawn.interaction_ids)))
    typer.echo(
        f"\nThe candidate is {candidate.path}; no gate has examined it. vLLM and transformers load it as it is:\n"
        f"    vllm serve {candidate.path}\n"
        f"To learn on from it, --parent {candidate.path} --out ANOTHER; to let users meet it, and learn from them,\n"
        f"serve a run with policy.base={candidate.path}"
    )


def _train(run: Run, snapshot: Snapshot, parent: Release, out: Path) -> Candidate:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from jobs.connecting import connected
    from sdpo_ray.distill.launch import distill

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with connected(run), Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("optimizer steps", total=None)
        return distill(
            snapshot=snapshot,
            parent=parent,
            policy_version=parent.policy_version + 1,
            out=out,
            config=run.distill,
            max_model_len=run.policy.max_model_len,
            seed=run.seed,
            base=run.base,
            on_step=lambda step, num_steps: progress.update(task, completed=step, total=num_steps),
        )


def _snapshot(directory: Path) -> Snapshot:
    """The record beside the rows; it may have been written where the directory was before."""
    from sdpo_ray.storage import read_json, require_ready

    file = directory / "snapshot.json"
    if not file.exists():
        raise ConfigError(f"{directory} has no snapshot.json: jobs/import_logs.py writes one from logs")
    return replace(read_json(require_ready(directory) / file.name, Snapshot), path=str(directory.absolute()))


def _parent(directory: Path) -> Release:
    """A policy's directory as a release: the version that a candidate says it is, else the base's."""
    from sdpo_ray.storage import read_json, require_ready

    if not (directory / "config.json").exists():
        raise ConfigError(f"there is no policy at {directory}: set policy.base, or --parent, to a policy's directory")
    version = BASE_VERSION
    if (directory / CANDIDATE_FILE).exists():
        version = read_json(require_ready(directory) / CANDIDATE_FILE, Candidate).policy_version
    unchecked = Fingerprint(token_ids=(), logprobs=())
    path = str(directory.absolute())
    return Release(policy_version=version, path=path, previous_version=None, fingerprint=unchecked)


def _learned(candidate: Candidate, num_drawn: int) -> "Table":
    """The first and the last step of an update, and what it did not learn from."""
    from rich.table import Table

    table = Table("", "first step", "last step", box=None, title=f"v{candidate.policy_version}", title_justify="left")
    first, last = candidate.steps[0], candidate.steps[-1]
    for name, unit, before, after in (
        ("loss", "", first.loss, last.loss),
        ("|A|", "nats a token", first.abs_advantage, last.abs_advantage),
        ("-log p of the answers", "nats a token", first.entropy, last.entropy),
        ("KL to the base", "nats a token", first.kl_to_base, last.kl_to_base),
        ("|log p - log p of the sampler|", "nats a token", first.sampler_gap, last.sampler_gap),
        ("gradient's norm", "", first.gradient_norm, last.gradient_norm),
    ):
        table.add_row(f"{name}{f', {unit}' if unit else ''}", f"{round(before, 6):g}", f"{round(after, 6):g}")
    table.add_section()
    table.add_row("optimizer steps", "", str(len(candidate.steps)))
    table.add_row("tokens learned from", "", f"{sum(step.num_tokens for step in candidate.steps):,}")
    table.add_row("interactions in the snapshot", "", f"{num_drawn:,}")
    for words, counts in (("refused", candidate.refusals), ("learned from in part", candidate.alterations)):
        for each in counts:
            table.add_row(f"  {words}: {each.reason}", "", f"{each.n:,}", style="yellow")
    return table


if __name__ == "__main__":
    command(main)
