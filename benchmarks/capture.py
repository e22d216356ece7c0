"""Rates of the data plane: durable turns against the disk, curation from log to interactions, growth of the draw.

    PYTHONPATH=. python benchmarks/capture.py --json capture.json

Three parts, one after the other: `benchmarks/journal.py` (64 turns of 3 kB in flight, each round beside the disk's own
rate), `benchmarks/sampling.py` (100 thousand, a million and five million rows) and `benchmarks/stage.py`. About three
minutes together.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from journal import journal_figures
from progress import Steps
from report import machine
from rich.console import Console
from rich.table import Table
from sampling import ROUNDS, SIZES, growth
from sampling import measure as measure_sampling
from stage import measure as measure_stage
from stage import rows_per_s

STAGE_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of the journal and of the bare disk, alternating")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round of the journal")
    parser.add_argument(
        "--turns", type=int, default=20_000, help="turns that the stage curates in each of its three rounds"
    )
    parser.add_argument("--disk", type=Path, help="directory on the disk to measure; default: that of temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder, Steps("journal", arguments.rounds + 1) as steps:
        figures: dict[str, Any] = journal_figures(
            Path(folder),
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            on_round=lambda rate: steps.done(f"{rate:.0f} turns/s"),
        )
    with Steps("draw", len(SIZES) * (ROUNDS + 1)) as steps:
        costs = measure_sampling(on_draw=lambda cost: steps.done(f"{cost.num_rows} rows, {cost.ns_a_row:.0f} ns a row"))
    with Steps("stage", STAGE_ROUNDS) as steps:
        stages = measure_stage(
            arguments.turns, STAGE_ROUNDS, on_round=lambda each: steps.done(f"{each.rows_per_s:.0f} rows/s")
        )
    figures["stage_rows_per_s"] = rows_per_s(stages)
    figures["sampling_growth"] = growth(costs)
    figures |= {f"sampling_ns_a_row_{cost.num_rows}": cost.ns_a_row for cost in costs}
    figures |= {
        f"stage_{name}": min(getattr(each, name) for each in stages) for name in ("ingest_s", "index_s", "decide_s")
    }
    table = Table("", "", box=None, show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"machine": machine("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
