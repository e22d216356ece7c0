"""The plot of a run: win rate and share of right answers against interactions, one marker for each verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo_ray.demo.run_summary import EvaluatedVersion, Summary
from sdpo_ray.evaluate.statistics import Estimate
from sdpo_ray.records import Verdict

_MARKS = {Verdict.PROMOTE: ("o", "promoted"), Verdict.HOLD: ("s", "held"), Verdict.REJECT: ("X", "refused")}
_BASE_WIN_RATE = 0.5
"""The base against itself: the first point of the curve of win rates."""


def draw(summary: Summary, path: Path) -> None:
    """Write the plot to `path` as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _curve(
        axes,
        summary.evaluated,
        [p.win_rate for p in summary.evaluated],
        "tab:blue",
        "win rate against the base",
        _BASE_WIN_RATE,
    )
    _curve(axes, summary.evaluated, [p.retention for p in summary.evaluated], "tab:green", "right answers", None)
    for verdict, (marker, word) in _MARKS.items():
        if any(point.verdict is verdict for point in summary.evaluated):
            axes.plot([], [], color="gray", marker=marker, linestyle="", label=word)
    for point in summary.evaluated:
        colour = "tab:red" if point.verdict is Verdict.REJECT else "black"
        axes.annotate(f"v{point.policy_version}", (point.interactions, 1.04), ha="center", fontsize=9, color=colour)
        if point.verdict is Verdict.REJECT:
            axes.axvline(point.interactions, color="tab:red", alpha=0.25, linestyle=":")
    axes.axhline(_BASE_WIN_RATE, color="lightgray", zorder=0)
    axes.set(
        xlabel="interactions with users so far", ylabel="share of held-out prompts", ylim=(-0.03, 1.1), xlim=(0, None)
    )
    axes.set_title(
        f"{summary.conversations} conversations, {summary.requests.failed} failed requests, "
        f"{summary.promotions} updates promoted, {summary.refusals} refused"
    )
    axes.legend(loc="lower left", framealpha=0.9)
    figure.savefig(path)


def _curve(
    axes: Any,
    evaluated: Sequence[EvaluatedVersion],
    estimates: Sequence[Estimate | None],
    colour: str,
    label: str,
    start: float | None,
) -> None:
    """Every version with its interval; a line joins the promoted ones."""
    line = [(0.0, start)] if start is not None else []
    for point, estimate in zip(evaluated, estimates, strict=True):
        if estimate is None:
            continue
        promoted = point.verdict is Verdict.PROMOTE
        if promoted:
            line.append((point.interactions, estimate.value))
        error = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        marker = _MARKS[point.verdict][0]
        alpha = 1.0 if promoted else 0.5
        axes.errorbar(
            point.interactions, estimate.value, yerr=error, color=colour, marker=marker, ms=8, capsize=3, alpha=alpha
        )
    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, label=label)
