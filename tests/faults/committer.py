"""A committer without Ray: event log -> `turns`, `feedback` -> `pending`, and maintenance of these tables."""

import sys
from pathlib import Path

from sdpo_ray.curate.ingest import ingest
from sdpo_ray.curate.pairing_index import index
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.delta_table import Table
from tests.faults.crash import CURATE, SEGMENT_BYTES, ready


def main(root: Path) -> None:
    layout = Layout(root)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    turns, feedback, pending = Table.turns(layout), Table.feedback(layout), Table.pending(layout)
    ready(root)
    while True:
        ingest(
            log,
            turns,
            feedback,
            max_turns=CURATE.max_batch_turns,
            max_bytes=CURATE.max_batch_mib << 20,
            erased=lambda event: False,
            on_turns=lambda num_turns: None,
        )
        index(turns, pending)
        for table in (turns, feedback, pending):
            table.maintain(every=CURATE.compact_every, keep_files_h=CURATE.keep_files_h)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
