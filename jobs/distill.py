"""One update offline: learn from a snapshot on disk, such as `jobs/import_logs.py` writes, and seal a candidate.

    python jobs/distill.py --run jobs/recipes/laptop.toml --snapshot runs/logs --out runs/v0001

It runs on the Ray cluster that is there, else on one that it starts and stops. With --dry-run it says what the update
would need, and needs neither Ray nor the weights. Broken off, it goes on where it was when it is started again.
"""

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
    out: Annotated[Path | None, typer.Option(help="Directory of the candidate, where all workers see it.")] = None,
    parent: Annotated[Path | None, typer.Option(help="Policy to go on from. Default: the run's base.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what each worker would need, and stop.")] = False,
    gpu_gib: Annotated[
        float | None, typer.Option(min=0, help="Memory to judge a dry run by. Default: that of a GPU that is here.")
    ] = None,
) -> None:
    """Train one update on a snapshot, without serving, evaluation or gate."""
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
        f"To learn on from it, --parent {candidate.path} --out ANOTHER; to let users meet it, and learn from them,\n"
        f"serve a run with policy.base={candidate.path}"
    )


if __name__ == "__main__":
    command(main)
