"""Estimators, baselines and teachers compared on the tiny policy: python benchmarks/estimators.py --jobs 2

Each arm learns from the same kind of user (the persona `concise`) for 40 updates of 16 fresh answers each, with the
learner's own step, over several seeds. Win rate is against the base on held-out prompts, ties dropped; right is the
share of right answers on them. An interval is Student's t over seeds.
"""

import json
import math
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer
from arms import ARMS, BATCH, EXAMINED, UPDATES, Point, learn
from rich.console import Console
from rich.progress import track
from rich.table import Table

# Two-sided 95 % of Student's t, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval."""
    half = T95[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return fmean(values), half


def main(
    seeds: Annotated[int, typer.Option(help="Seeds an arm.", min=2, max=10)] = 5,
    learning_rate: Annotated[list[float] | None, typer.Option(help="Learning rates; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time, one thread each.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every point to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw gained against kept to this PNG file.")] = None,
) -> None:
    """Compare what each token is moved by, on the laptop policy, over seeds."""
    # Read by the processes that learn, before they import torch.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    rates = learning_rate or [2e-4, 4e-4]
    cells = [(arm, rate, seed) for rate in rates for seed in range(seeds) for arm in ARMS]
    points: list[Point] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(learn, *cell) for cell in cells]
        for future in track(running, description="arms x seeds"):
            points.extend(future.result())
    rows = [(rate, arm, *_row(points, rate, arm)) for rate in rates for arm in ARMS]
    heads = ("rate", "arm", *(f"win rate, {n * BATCH}" for n in EXAMINED), f"right, {UPDATES * BATCH}", "words")
    table = Table(*heads)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=150).print(table)
    if json_file is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        json_file.write_text(
            json.dumps({"commit": commit.stdout.strip(), "points": [asdict(point) for point in points]}, indent=1)
        )
    if markdown is not None:
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        markdown.write_text("\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n")
    if figure is not None:
        draw(points, rates, figure)


def draw(points: Sequence[Point], rates: Sequence[float], path: Path) -> None:
    """What each arm gained against what it kept, half-way: one panel a learning rate."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 4.6), layout="constrained")
    panels = canvas.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for index, arm in enumerate(ARMS):
            (win, win_half), (right, right_half) = (_final(points, rate, arm, name) for name in ("win_rate", "right"))
            marker = "os^Dv<>P"[index % 8]
            panel.errorbar(win, right, xerr=win_half, yerr=right_half, marker=marker, capsize=3, ls="none", label=arm)
        panel.set_title(f"learning rate {rate:g}, {EXAMINED[1] * BATCH} interactions")
        panel.set_xlabel("win rate against the base, ties dropped")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("right answers, held-out prompts")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    canvas.savefig(path, dpi=130)


def _final(points: Sequence[Point], rate: float, arm: str, name: str) -> tuple[float, float]:
    mine = [p for p in points if (p.arm, p.learning_rate, p.interactions) == (arm, rate, EXAMINED[1] * BATCH)]
    return interval([getattr(point, name) for point in mine])


def _row(points: Sequence[Point], rate: float, arm: str) -> list[str]:
    mine = [point for point in points if (point.arm, point.learning_rate) == (arm, rate)]

    def shown(name: str, interactions: int, digits: int = 3) -> str:
        mean, half = interval([getattr(point, name) for point in mine if point.interactions == interactions])
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    last = UPDATES * BATCH
    return [*(shown("win_rate", n * BATCH) for n in EXAMINED), shown("right", last), shown("tokens", last, 1)]


if __name__ == "__main__":
    typer.run(main)
