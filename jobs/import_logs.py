"""Import conversation logs of other systems: as a snapshot to train on, or into a run's event log."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import Overrides, command, plain_errors
from sdpo_ray.errors import ConfigError

Files = Annotated[list[Path], typer.Argument(help="JSON Lines, JSON array or Parquet, gzipped or not.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the snapshot to write; must not exist.")]
Into = Annotated[
    Path | None,
    typer.Option(help="Run file: write into that run's event log instead, to be curated as live turns are."),
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", help="wildchat, wildfeedback, openai or triples. Default: by each file's first record."),
]
Language = Annotated[str, typer.Option(help="ISO 639-1 code of the only language to keep, or 'any'.")]
QuestionChars = Annotated[
    int | None, typer.Option(min=1, help="Longest user message. Default: 4096 for wildchat, else no limit.")
]


def main(
    files: Files,
    out: Out = None,
    into: Into = None,
    overrides: Overrides = None,
    form: FormatName = None,
    limit: Annotated[int, typer.Option(min=1, help="Most interactions to keep, drawn by the seed.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the order of training.")] = 0,
    held_out: Annotated[float, typer.Option(min=0, max=0.99, help="Share of conversations never trained on.")] = 0.1,
    language: Language = "en",
    drop_toxic: Annotated[bool, typer.Option("--drop-toxic", help="Refuse what the log marks as toxic.")] = False,
    min_messages: Annotated[int, typer.Option(min=3, help="Fewest messages of a conversation.")] = 3,
    max_messages: Annotated[int, typer.Option(min=1, help="Most messages of a prompt.")] = 5,
    max_conversation_chars: Annotated[int, typer.Option(min=1, help="Longest conversation.")] = 100_000,
    max_answer_chars: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    max_question_chars: QuestionChars = None,
) -> None:
    """Import conversation logs as a snapshot to train on, or into a run's event log.

    \b
    sdpo import-logs chats.jsonl.gz --out runs/logs    # then: sdpo distill --snapshot runs/logs --out runs/first
    sdpo import-logs chats.jsonl.gz --into my.toml     # then: sdpo curate --run my.toml

    Each answer that a user's message follows becomes an interaction. Prints how many were kept and why the others
    were refused. The defaults are the filters of the SDPO paper.
    """
    with plain_errors():
        if (out is None) == (into is None):
            raise ConfigError("name either a snapshot to write (--out DIR) or the run to write into (--into RUN.toml)")
        if overrides and into is None:
            raise ConfigError("--set changes a run file, which --into names")
        from sdpo_ray.config import load_run
        from sdpo_ray.datasets.conversation_split import SplitLimits
        from sdpo_ray.datasets.import_logs import import_into_log, import_snapshot, parse_format, parse_language

        limits = SplitLimits(
            min_messages=min_messages,
            max_messages=max_messages,
            max_conversation_chars=max_conversation_chars,
            max_answer_chars=max_answer_chars,
            max_question_chars=max_question_chars,
            language=parse_language(language),
            drop_toxic=drop_toxic,
        )
        if into is not None:
            import_into_log(files, parse_format(form), limits, load_run(into, overrides or ()))
        elif out is not None:
            import_snapshot(files, parse_format(form), limits, out, limit=limit, seed=seed, held_out=held_out)


if __name__ == "__main__":
    command(main)
