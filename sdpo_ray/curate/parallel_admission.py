"""Run admission in parallel, in blocks, with Ray Data."""

import logging
import math
from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission.task import TASKS, AdmissionTask, admit_block
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.upstream.ray import DATA_PROGRESS_LOGGER

_TASKS_PER_BLOCK = 1024
_CPUS_PER_BLOCK = 0.25


def admit_tasks(
    tasks: Sequence[AdmissionTask], turns: Table, *, curate: CurateConfig, capture: CaptureConfig, now_s: float
) -> pa.Table:
    """Rows of `task.OUTCOME`, one for each task, in no particular order. `turns` holds the answers and follow-ups.

    `tasks` is not empty; `now_s` is Unix time. Uses the Ray cluster that this process is connected to.
    """
    import ray
    import ray.data

    _quieten_ray_data()
    # Ray keeps as many idle workers as there are CPUs; more would start anew each time, which takes seconds.
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = list(_blocks(tasks, turns, workers))
    outcomes = ray.data.from_arrow(blocks).map_batches(
        admit_block,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_CPUS_PER_BLOCK,
        compute=ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
        fn_kwargs={"curate": curate, "capture": capture, "now_s": now_s},
    )
    return pa.concat_tables(ray.get(outcomes.to_arrow_refs()))


def _blocks(tasks: Sequence[AdmissionTask], turns: Table, workers: int) -> Iterator[pa.Table]:
    """Rows of `TASKS`, sorted by batch, in few blocks: each block decodes all data files of its answers."""
    ordered = sorted(tasks, key=lambda each: (each.answer_batch, each.follow_up_batch, each.answer))
    size = max(_TASKS_PER_BLOCK, math.ceil(len(ordered) / workers))
    for start in range(0, len(ordered), size):
        block = ordered[start : start + size]
        batches = {batch for each in block for batch in (each.answer_batch, each.follow_up_batch) if batch}
        yield _block(block, turns.files(batches))


def _block(tasks: Sequence[AdmissionTask], files: Sequence[str]) -> pa.Table:
    rows = [
        {
            "answer": each.answer,
            "follow_up": each.follow_up,
            "feedback": None if each.feedback is None else msgspec.to_builtins(each.feedback),
            # `admit_block` collects the files over all rows: one row has to name them.
            "files": files if number == 0 else [],
        }
        for number, each in enumerate(tasks)
    ]
    return pa.Table.from_pylist(rows, schema=TASKS)


def _quieten_ray_data() -> None:
    """Switch off plans and progress bars, which a micro-batch every few seconds would print each time."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # This logger warns that the progress bars are off.
    logging.getLogger(DATA_PROGRESS_LOGGER).setLevel(logging.ERROR)
