"""Explain a turn of a run, or the cases of a file: find the policy, score the answers, write the pages."""

from pathlib import Path

import typer

from sdpo_ray.config import Run
from sdpo_ray.explain.cases import read_cases
from sdpo_ray.explain.interaction_lookup import champion, find_interaction, policy_that_answered


def explain_turn(run: Run, turn_id: str, policy: Path | None, out: Path) -> None:
    """Write the pages of one turn into `out`. Raises ConfigError if the turn or the policy does not exist."""
    from sdpo_ray.explain.attribution_report import AttributionReport

    interaction = find_interaction(run.layout, turn_id)
    path, which = (policy, "given") if policy else policy_that_answered(run, interaction.turn.policy_version)
    report = AttributionReport(run, path)
    typer.echo(f"policy: {path} ({which})")
    report.add([interaction])
    report.write(out, f"Turn {turn_id}")


def explain_cases(run: Run, file: Path, policy: Path | None, out: Path, *, seed: int, max_tokens: int) -> None:
    """Write the pages of a file's cases into `out`. `seed` and `max_tokens` are for sampled answers."""
    from sdpo_ray.explain.attribution_report import AttributionReport

    cases = read_cases(file)
    path, which = (policy, "given") if policy else champion(run)
    report = AttributionReport(run, path)
    typer.echo(f"policy: {path} ({which})")
    for case in cases:
        report.add_case(case, seed=seed, max_tokens=max_tokens)
    report.write(out, f"The cases of {file.name}")
