"""Train one candidate from a snapshot on disk, such as `jobs/import_logs.py` writes."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.pipeline.offline_update import read_parent, read_snapshot, summary_table, train_offline


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    snapshot: Annotated[
        Path | None, typer.Option(help="Directory with snapshot.json and interactions.parquet.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the candidate; all workers must see it.")] = None,
    parent: Annotated[Path | None, typer.Option(help="Policy to start from. Default: the run's base.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the memory that each worker needs and stop.")
    ] = False,
    gpu_gib: Annotated[
        float | None, typer.Option(min=0, help="Memory that a dry run compares with. Default: this machine's GPU.")
    ] = None,
) -> None:
    """Train one candidate from a snapshot, without serving, evaluation or gate.

    \b
    sdpo import-logs chats.jsonl --out runs/logs
    sdpo distill --snapshot runs/logs --out runs/first --dry-run
    sdpo distill --snapshot runs/logs --out runs/first

    Runs on the Ray cluster that is up, else on one that it starts and stops. Prints loss, advantages and KL of the
    first and last step; the candidate is a directory that vLLM and transformers load. Interrupted, it resumes when it
    is started again. --dry-run needs neither Ray nor the weights.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        drawn = read_snapshot(snapshot) if snapshot is not None else None
        if dry_run:
            from sdpo_ray.distill.train.memory_report import show

            show(resolved, drawn, gpu_gib)
            return
        if drawn is None or out is None:
            raise ConfigError("give --snapshot DIR and --out DIR, or --dry-run")
        candidate = train_offline(resolved, drawn, read_parent(parent or resolved.base), out)
    from rich.console import Console

    Console().print(summary_table(candidate, len(drawn.interaction_ids)))
    typer.echo(
        f"\nThe candidate is {candidate.path}; no gate has evaluated it. vLLM and transformers load it as it is:\n"
        f"    vllm serve {candidate.path}\n"
        f"To train on from it: --parent {candidate.path} --out ANOTHER. To serve it to users and learn from them,\n"
        f"serve a run with policy.base={candidate.path}"
    )


if __name__ == "__main__":
    command(main)
