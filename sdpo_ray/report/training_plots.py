"""Two figures of a cycle as PNG files: the curves of its training, and the scores of its evaluation."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdpo_ray.records import Report, Score, StepMetrics

_CURVES = {
    "loss": "loss",
    "mean_advantage": "mean advantage, nats",
    "gradient_norm": "gradient norm",
    "sampler_gap": "sampler gap, nats",
}


def training_curves(steps: Sequence[StepMetrics], path: Path) -> None:
    """Draw loss, mean advantage, gradient norm and sampler gap over the optimizer steps of one update."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for place, (name, label) in enumerate(_CURVES.items(), start=1):
        axes = figure.add_subplot(2, 2, place)
        axes.plot([step.step for step in steps], [getattr(step, name) for step in steps], marker=".")
        axes.set(xlabel="optimizer step", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def score_intervals(report: Report, path: Path) -> None:
    """Draw every score with its interval. Shares lie in [0, 1]; a drop may be negative, a ratio above 1."""
    figure = Figure(figsize=(9, 0.4 * len(report.scores) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    for row, score in enumerate(reversed(report.scores)):
        # The gate rejects a value outside its own interval; the figure shows it all the same.
        below, above = max(0.0, score.value - score.low), max(0.0, score.high - score.value)
        axes.errorbar(score.value, row, xerr=[[below], [above]], fmt="o", color="C0", capsize=3)
        axes.annotate(f"{score.value:.3f}", (score.value, row), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(report.scores)), [_label(score) for score in reversed(report.scores)])
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_title(
        f"v{report.policy_version}, base v{report.base_version}, champion v{report.champion_version}: "
        f"{report.confidence:.0%} intervals"
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _label(score: Score) -> str:
    return f"{score.name} (n={score.n})"
