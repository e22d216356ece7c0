"""One update from a snapshot on disk, without serving, evaluation and gate."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_ray.config import Run
from sdpo_ray.distill.train.update_spec import CANDIDATE_FILE
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import BASE_VERSION, Candidate, Fingerprint, Release, Snapshot

if TYPE_CHECKING:
    from rich.table import Table


def train_offline(run: Run, snapshot: Snapshot, parent: Release, out: Path) -> Candidate:
    """Train `parent` on `snapshot` and write the candidate to `out`; shows a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from sdpo_ray.cluster.ray_session import ray_session
    from sdpo_ray.distill.train.launch import distill

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ray_session(run), Progress(*columns, console=Console(stderr=True)) as progress:
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


def read_snapshot(directory: Path) -> Snapshot:
    """The record of the snapshot in `directory`, with its present path: the directory may have been moved.

    Raises ConfigError if there is no record.
    """
    from sdpo_ray.io.files import read_json, require_ready

    file = directory / "snapshot.json"
    if not file.exists():
        raise ConfigError(f"{directory} has no snapshot.json: jobs/import_logs.py writes one from logs")
    return replace(read_json(require_ready(directory) / file.name, Snapshot), path=str(directory.absolute()))


def read_parent(directory: Path) -> Release:
    """A policy's directory as a release, with the version in its candidate record, else the base's.

    Raises ConfigError if there is no policy. The fingerprint is empty, since no engine loads the release.
    """
    from sdpo_ray.io.files import read_json, require_ready

    if not (directory / "config.json").exists():
        raise ConfigError(f"there is no policy at {directory}: set policy.base, or --parent, to a policy's directory")
    version = BASE_VERSION
    if (directory / CANDIDATE_FILE).exists():
        version = read_json(require_ready(directory) / CANDIDATE_FILE, Candidate).policy_version
    empty = Fingerprint(token_ids=(), logprobs=())
    path = str(directory.absolute())
    return Release(policy_version=version, path=path, previous_version=None, fingerprint=empty)


def summary_table(candidate: Candidate, num_drawn: int) -> "Table":
    """Metrics of the first and the last step of an update, and the counts of what it did not learn from."""
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
