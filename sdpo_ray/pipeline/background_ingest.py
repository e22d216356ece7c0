"""Ingest while a cycle is under way: an update may take hours, and the size of the journal is bounded."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sdpo_ray.config import Run
from sdpo_ray.pipeline.periodic import run_periodically

INGEST_S = 5.0
"""Seconds between two reads of the event log."""


@contextmanager
def ingest_in_background(run: Run, *, every_s: float = INGEST_S) -> Iterator[None]:
    """Append new events of the log to the tables while the block runs, without pairing them.

    Needs no data lock (`io.locks`): events that an erasure covers are dropped before they reach a table.
    """
    from sdpo_ray.curate.ingest import ingest
    from sdpo_ray.eventlog.factory import open_log
    from sdpo_ray.tables.delta_table import Table
    from sdpo_ray.tables.tombstones import Tombstones

    layout = run.layout
    turns, feedback, erasures = Table.turns(layout), Table.feedback(layout), Tombstones(layout)
    with closing(open_log(layout, run.capture, name="ingest")) as log:

        def work() -> None:
            ingest(
                log,
                turns,
                feedback,
                max_turns=run.curate.max_batch_turns,
                max_bytes=run.curate.max_batch_mib << 20,
                erased=erasures.covers,
            )

        complaint = "the event log is not stored while the cycle goes on"
        with run_periodically(work, name="ingest", every_s=every_s, complaint=complaint):
            yield
