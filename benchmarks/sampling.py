"""Cost of a draw per row, over table sizes: 100 thousand, one million, five million rows.

The rows are synthetic: light columns as the table `interactions` gives them, a hundredth of them with the same time as
another, twenty rows a user. All rules of the draw are on. The sizes alternate in one process, so that other load on the
machine affects all of them; figures are medians. `benchmarks/capture.py` calls `measure` and `growth`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.sampling import LIGHT_COLUMNS, draw

SIZES = (100_000, 1_000_000, 5_000_000)
ROUNDS = 7
ROWS_A_MEASUREMENT = 1_000_000
"""Rows that one measurement reads at least: a small table is drawn from several times."""
_ROWS_A_BATCH = 1_000
_ROWS_A_CHUNK = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One draw from `num_rows` rows."""

    num_rows: int
    ns_a_row: float


def measure(
    sizes: Sequence[int] = SIZES,
    *,
    rounds: int = ROUNDS,
    min_rows: int = ROWS_A_MEASUREMENT,
    on_draw: Callable[[Cost], None] = lambda cost: None,
) -> list[Cost]:
    """Median cost of a draw by size; needs about 250 bytes of memory for each of the rows of all sizes."""
    tables = [light(size) for size in sizes]
    taken: list[list[float]] = [[] for _ in sizes]
    for seed in range(rounds + 1):
        for table, seconds in zip(tables, taken, strict=True):
            found = _seconds_a_row(table, seed, min_rows)
            # The first round loads code and pages.
            if seed:
                seconds.append(found)
            on_draw(Cost(num_rows=table.num_rows, ns_a_row=1e9 * found))
    return [
        Cost(num_rows=size, ns_a_row=1e9 * statistics.median(seconds))
        for size, seconds in zip(sizes, taken, strict=True)
    ]


def growth(costs: Sequence[Cost]) -> float:
    """Cost per row in the largest table over that in the smallest."""
    ordered = sorted(costs, key=lambda cost: cost.num_rows)
    return ordered[-1].ns_a_row / ordered[0].ns_a_row


def light(num_rows: int, *, seed: int = 0) -> pa.Table:
    """Light columns of `num_rows` interactions, in the order of their batches."""
    dice = np.random.default_rng(seed)
    times = np.sort(dice.uniform(0, num_rows, num_rows))
    same = dice.random(num_rows) < 0.01
    times[1:][same[1:]] = times[:-1][same[1:]]
    columns = {
        "interaction_id": pa.array([f"{number:032x}" for number in dice.permutation(num_rows)]),
        "follow_up_at_s": times,
        "policy_version": dice.integers(0, 12, num_rows, dtype=np.int32),
        "split": dice.integers(0, 2**32, num_rows),
        "tenant": pa.array(["acme", "globex", "initech", "hooli"]).take(pa.array(dice.integers(0, 4, num_rows))),
        "user": pa.array([f"k1.{number:032x}" for number in dice.integers(0, num_rows // 20 + 1, num_rows)]),
        "batch": np.arange(num_rows) // _ROWS_A_BATCH + 1,
    }
    whole = pa.table(columns).select(LIGHT_COLUMNS)
    return pa.Table.from_batches(whole.to_batches(max_chunksize=_ROWS_A_CHUNK))


def _seconds_a_row(table: pa.Table, seed: int, min_rows: int) -> float:
    """Seconds per row of one draw, the mean of as many draws as read `min_rows` rows."""
    config = CurateConfig(tenant_mix={"acme": 0.5, "globex": 0.1}, replay_share=0.25, max_age_versions=8)
    times = max(1, min_rows // table.num_rows)
    began = time.perf_counter()
    for each in range(times):
        plan = draw(
            table,
            champion_version=12,
            seed=seed * times + each,
            now_s=float(table.num_rows),
            last_batch=table.num_rows // _ROWS_A_BATCH // 2,
            config=config,
        )
    seconds = (time.perf_counter() - began) / times / table.num_rows
    if len(plan.interaction_ids) != config.snapshot_size:
        raise RuntimeError(f"only {len(plan.interaction_ids)} of {config.snapshot_size} were drawn")
    return float(seconds)
