"""Write interactions, preferences or labels of a run for other trainers: Parquet or JSON Lines."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.cli.times import unix_seconds
from sdpo_ray.errors import ConfigError


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .parquet, .jsonl or .jsonl.gz; must not exist.")
    ] = None,
    what: Annotated[str, typer.Option(help="interactions, preferences or labels.")] = "interactions",
    snapshot: Annotated[
        Path | None, typer.Option(help="Directory of a snapshot: the interactions of one update, in its order.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="ISO 8601 time of the first follow-up or feedback; UTC without an offset.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="ISO 8601 time of the first that is left out.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Rows of this tenant only.")] = None,
    policy_version: Annotated[int | None, typer.Option(help="Answers of this policy version only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows; the oldest come first.")] = None,
) -> None:
    """Write interactions, preferences or labels for other trainers.

    \b
    sdpo export --out interactions.jsonl.gz
    sdpo export --what preferences --out dpo.parquet

    Interactions are prompt, completion, user_response: for TRL's SFTTrainer, and for `sdpo import-logs`, which reads
    all of them with --format triples --language any --max-messages 1000. Preferences, from answers that users edited,
    are prompt, chosen, rejected for DPOTrainer. Labels, from answers with a thumb, are prompt, completion, label for
    KTOTrainer. Messages are OpenAI's, users are pseudonyms, redacted text stays redacted.

    `datasets.load_dataset("json" or "parquet", data_files=...)` reads the files as they are.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if out is None:
            raise ConfigError("give --out FILE")
        from sdpo_ray.datasets.export import export
        from sdpo_ray.datasets.export_query import ExportQuery
        from sdpo_ray.datasets.export_rows import ExportKind

        if what not in list(ExportKind):
            raise ConfigError(f"there is no {what!r} to export; there are {', '.join(ExportKind)}")
        if snapshot is not None and what != ExportKind.INTERACTIONS:
            raise ConfigError("a snapshot has interactions alone: leave --what, or --snapshot, out")
        query = ExportQuery(
            since_s=unix_seconds(since), until_s=unix_seconds(until), tenant=tenant, version=policy_version
        )
        num_rows, left_out = export(resolved.layout, snapshot, query, ExportKind(what), out, limit)
        for reason, n in sorted(left_out.items()):
            typer.echo(f"left out: {reason}: {n}", err=True)
    typer.echo(f"{out}: {num_rows} {what}")


if __name__ == "__main__":
    command(main)
