"""A job on a Ray cluster that advances the curation stage and, with the argument `draw`, draws snapshots."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from sdpo_ray.config import CaptureConfig
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.curate.snapshot import count_new, draw_snapshot
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Snapshot
from tests.faults.crash import CURATE, SEGMENT_BYTES, ready

MIN_NEW = 40


def draw(curator: Curator, layout: Layout) -> None:
    cycle, since = 1, 0
    while is_ready(layout.snapshot(cycle)):
        since = read_json(layout.snapshot(cycle) / "snapshot.json", Snapshot).last_batch
        cycle += 1
    table, now_s = curator.interactions, time.time()
    if count_new(table, after=since, champion_version=0, now_s=now_s, config=CURATE) >= MIN_NEW:
        draw_snapshot(
            table,
            layout.snapshot(cycle),
            champion_version=0,
            seed=cycle,
            now_s=now_s,
            last_batch=since,
            config=CURATE,
        )


def main(root: Path, what: str) -> None:
    import ray

    layout = Layout(root)
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    curator = Curator(layout, log, curate=CURATE, capture=CaptureConfig())
    append = curator.interactions.append

    def noted(rows: pa.Table, positions: Mapping[str, int]) -> int | None:
        batch = append(rows, positions)
        # Ray has started by now.
        ready(root)
        return batch

    curator.interactions.append = noted  # type: ignore[method-assign]
    while True:
        curator.advance()
        curator.maintain()
        if what == "draw":
            draw(curator, layout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
