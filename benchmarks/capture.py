"""The data plane's rates: durable turns against the disk, the stage from log to interactions, the draw's growth.

    PYTHONPATH=. python benchmarks/capture.py --json capture.json

Three parts, one after the other: `benchmarks/journal.py` (64 turns of 3 kB in flight, each round beside the disk's own
rate), `benchmarks/stage.py` and `benchmarks/sampling.py` (100 thousand, a million and five million rows).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from journal import journal_figures
from report import machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sampling import ROUNDS, SIZES, growth
from sampling import measure as measure_sampling
from stage import measure as measure_stage
from stage import rows_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of the journal and of the bare disk, in turns")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each round of the journal takes")
    parser.add_argument("--turns", type=int, default=20_000, help="that the stage curates in each of its three rounds")
    parser.add_argument("--disk", type=Path, help="directory on the disk to measure; default: that of temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("journal", total=arguments.rounds + 1)
        with tempfile.TemporaryDirectory(dir=arguments.disk) as directory:
            figures: dict[str, Any] = journal_figures(
                Path(directory),
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                on_round=lambda: progress.advance(task),
            )
        drawing = progress.add_task("draw", total=len(SIZES) * (ROUNDS + 1))
        costs = measure_sampling(on_turn=lambda: progress.advance(drawing))
        curating = progress.add_task("stage", total=3)
        stages = measure_stage(arguments.turns, 3, on_round=lambda: progress.advance(curating))
    figures["stage_rows_per_s"] = rows_per_s(stages)
    figures["sampling_growth"] = growth(costs)
    figures |= {f"sampling_ns_a_row_{cost.num_rows}": cost.ns_a_row for cost in costs}
    figures |= {
        f"stage_{name}": min(getattr(each, name) for each in stages) for name in ("ship_s", "index_s", "decide_s")
    }
    table = Table("", "", box=None, show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"machine": machine("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
