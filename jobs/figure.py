"""The picture of a run: win rate and right answers against interactions, promotions and refusals marked."""

from pathlib import Path

from jobs.summary import Examined, Summary
from sdpo_ray.records import Verdict

_MARKS = {Verdict.PROMOTE: ("o", "promoted"), Verdict.HOLD: ("s", "held"), Verdict.REJECT: ("X", "refused")}


def draw(summary: Summary, path: Path) -> None:
    """Write the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, colour in (("win_rate", "tab:blue"), ("retention", "tab:green")):
        label = {"win_rate": "win rate against the base, ties dropped", "retention": "right answers"}[name]
        served = [point for point in summary.examined if point.verdict is Verdict.PROMOTE]
        line = [(point.interactions, _value(point, name)) for point in served if _value(point, name) is not None]
        axes.plot(*zip(*line, strict=True), color=colour, label=label) if line else None
        for point in summary.examined:
            estimate = getattr(point, name)
            if estimate is None:
                continue
            error = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            marker = _MARKS[point.verdict][0]
            faint = 1.0 if point.verdict is Verdict.PROMOTE else 0.5
            axes.errorbar(
                point.interactions,
                estimate.value,
                yerr=error,
                color=colour,
                marker=marker,
                ms=8,
                capsize=3,
                alpha=faint,
            )
    for verdict, (marker, word) in _MARKS.items():
        if any(point.verdict is verdict for point in summary.examined):
            axes.plot([], [], color="gray", marker=marker, linestyle="", label=word)
    for point in summary.examined:
        axes.annotate(
            f"v{point.policy_version}", (point.interactions, 1.03), ha="center", fontsize=9, annotation_clip=False
        )
    axes.axhline(0.5, color="lightgray", zorder=0)
    axes.set(xlabel="interactions learned from so far", ylabel="share", ylim=(-0.02, 1.08))
    axes.set_title(
        f"{summary.conversations} conversations, {summary.requests.failed} failed requests, "
        f"{summary.promotions} promotions, {summary.refusals} refused"
    )
    axes.legend(loc="lower right")
    figure.savefig(path)


def _value(point: Examined, name: str) -> float | None:
    estimate = getattr(point, name)
    return estimate.value if estimate is not None else None
