"""Draws the curves of one pre-training run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpo_ray.simulate.tiny_policy.measure import Measurement


def draw_curve(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw loss, right answers and violations against steps, one panel each."""
    steps = [m.step for m in measurements]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, right, wishes = figure.subplots(1, 3)
    loss.plot(steps, [m.loss for m in measurements], color="tab:blue")
    loss.set(title="loss per learned token", yscale="log")
    right.plot(steps, [m.right for m in measurements], label="question alone")
    right.plot(steps, [m.right_in_hindsight for m in measurements], label="with hindsight")
    right.axhline(0.98, color="grey", linestyle=":", linewidth=1)
    right.set(title="right answers, held-out phrasings", ylim=(0, 1.02))
    right.legend(loc="lower right")
    wishes.plot(steps, [m.base_violations for m in measurements], label="question alone")
    wishes.plot(steps, [m.oracle_violations for m in measurements], label="whole taste in hindsight")
    wishes.axhline(0.4, color="grey", linestyle=":", linewidth=1)
    wishes.set(title="violated wishes of 3", ylim=(0, 2.2))
    wishes.legend(loc="upper right")
    for panel in (loss, right, wishes):
        panel.set_xlabel("steps")
    # A fixed date in the metadata would still differ by matplotlib version; none at all keeps the file reproducible.
    figure.savefig(path, dpi=110, metadata={"Software": None})
