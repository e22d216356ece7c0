"""A committer that takes one step for each line of its input and prints the result as a line."""

import sys
from pathlib import Path

import msgspec
from deltalake.exceptions import DeltaError

from sdpo_ray.curate.ingest import ingest
from sdpo_ray.curate.pairing_index import index
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.delta_table import Table
from tests.faults.crash import SEGMENT_BYTES


def main(root: Path, tables: str) -> None:
    layout = Layout(root, tables)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    turns, feedback, pending = Table.turns(layout), Table.feedback(layout), Table.pending(layout)
    for step in sys.stdin:
        result: dict[str, object] = {}
        try:
            match step.strip():
                case "ship":
                    shipped = ingest(
                        log,
                        turns,
                        feedback,
                        max_turns=1000,
                        max_bytes=64 << 20,
                        erased=lambda event: False,
                        on_turns=lambda num_turns: None,
                    )
                    index(turns, pending)
                    result["done"] = shipped.num_turns
                case "stored":
                    result["done"] = turns.read(["turn_id"])["turn_id"].to_pylist()
                case "purge":
                    turns.purge()
                    result["done"] = turns.files()
        except (OSError, DeltaError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
