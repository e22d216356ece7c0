"""Estimators, baselines and teachers compared on the tiny policy: python benchmarks/estimators.py --jobs 2

Each arm learns from the same kind of user (the persona `concise`) for 40 updates of 16 fresh answers each, with the
learner's own step, over several seeds. Win rate is against the base on held-out prompts, ties dropped; right is the
share of right answers on them. An interval is Student's t over seeds. An arm takes 15 seconds for each seed and rate:
the default about six minutes, `--long` about twenty.
"""

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer
from arms import ARMS, BATCH, EVALUATED_AT, UPDATES, Point, learn
from progress import Steps
from report import as_markdown, commit, show
from scipy.stats import t as student_t

RATES, LONG_RATES = (2e-4,), (2e-4, 4e-4)
SEEDS, LONG_SEEDS = 3, 5


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of two values or more, and the half width of its 95 % interval."""
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


def main(
    long: Annotated[bool, typer.Option("--long", help="Five seeds and both learning rates.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each arm.", min=2)] = None,
    learning_rate: Annotated[list[float] | None, typer.Option(help="Learning rates; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time, one thread each.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every point to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw gained against kept to this PNG file.")] = None,
) -> None:
    """Compare estimators, baselines and teachers on the laptop policy, over seeds."""
    # For the worker processes, which read it when they import torch.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    rates = learning_rate or (LONG_RATES if long else RATES)
    num_seeds = seeds or (LONG_SEEDS if long else SEEDS)
    cells = [(arm, rate, seed) for rate in rates for seed in range(num_seeds) for arm in ARMS]
    points: list[Point] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, Steps("arms", len(cells)) as steps:
        running = {pool.submit(learn, *cell): cell for cell in cells}
        for future in as_completed(running):
            points.extend(found := future.result())
            arm, rate, seed = running[future]
            steps.done(f"{arm}, rate {rate:g}, seed {seed}: win rate {found[-1].win_rate:.3f}")
    head = ("rate", "arm", *(f"win rate, {n * BATCH}" for n in EVALUATED_AT), f"right, {UPDATES * BATCH}", "words")
    table = [head, *((str(rate), arm, *_row(points, rate, arm)) for rate in rates for arm in ARMS)]
    show(table)
    if json_file is not None:
        record = {"commit": commit(), "points": [asdict(point) for point in points]}
        json_file.write_text(json.dumps(record, indent=1))
    if markdown is not None:
        markdown.write_text(as_markdown(table) + "\n")
    if figure is not None:
        draw(points, rates, figure)


def draw(points: Sequence[Point], rates: Sequence[float], path: Path) -> None:
    """Draw win rate over right answers of each arm, half-way; one panel for each learning rate."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 4.6), layout="constrained")
    panels = canvas.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for index, arm in enumerate(ARMS):
            (win, win_half), (right, right_half) = (_final(points, rate, arm, name) for name in ("win_rate", "right"))
            marker = "os^Dv<>P"[index % 8]
            panel.errorbar(win, right, xerr=win_half, yerr=right_half, marker=marker, capsize=3, ls="none", label=arm)
        panel.set_title(f"learning rate {rate:g}, {EVALUATED_AT[1] * BATCH} interactions")
        panel.set_xlabel("win rate against the base, ties dropped")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("right answers, held-out prompts")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    canvas.savefig(path, dpi=130)


def _final(points: Sequence[Point], rate: float, arm: str, name: str) -> tuple[float, float]:
    mine = [p for p in points if (p.arm, p.learning_rate, p.interactions) == (arm, rate, EVALUATED_AT[1] * BATCH)]
    return interval([getattr(point, name) for point in mine])


def _row(points: Sequence[Point], rate: float, arm: str) -> list[str]:
    mine = [point for point in points if (point.arm, point.learning_rate) == (arm, rate)]

    def shown(name: str, interactions: int, digits: int = 3) -> str:
        mean, half = interval([getattr(point, name) for point in mine if point.interactions == interactions])
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    last = UPDATES * BATCH
    return [*(shown("win_rate", n * BATCH) for n in EVALUATED_AT), shown("right", last), shown("tokens", last, 1)]


if __name__ == "__main__":
    typer.run(main)
