"""Event log -> tables `turns` and `feedback`, exactly once, in bounded batches.

Turns and the position they were read up to are one commit, so a shipper that dies leaves both or neither, and of two
shippers at once one loses and looks again. Feedback of the same batch goes before, and is told by its id when it comes
again. What is on disk in the tables leaves the log. What belongs to an erased user never enters.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.curate.gc_pause import collector_paused
from sdpo_ray.errors import LostEvents
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.records import FOREIGN, Event, Feedback, Turn
from sdpo_ray.tables.arrow_schemas import feedback_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table

DUPLICATE_TURN = "duplicate_turn"
"""Delivered twice; the first one is kept. Feedback that is sent twice is one by design, and not counted."""
ERASED = "erased"
"""Left in the log by somebody who was erased since."""
_Kind = TypeVar("_Kind", Turn, Feedback)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """Made by `ship`; read by `curate.pipeline`."""

    num_turns: int
    num_feedback: int
    refused: Counter[str]


def ingest(
    log: EventLog,
    turns: Table,
    feedback: Table,
    *,
    max_turns: int,
    max_bytes: int,
    erased: Callable[[Event], bool],
    on_turns: Callable[[int], None] = lambda num_turns: None,
) -> Ingested:
    """Bring the tables up to where every partition ended at some moment of this call, then truncate the log.

    `erased` tells, once an event is read, whether somebody who is erased left it in the log; `on_turns` hears how many
    turns were stored. Raises CorruptLog, LostEvents.
    """
    waiting = set(log.partitions())
    num_turns = num_feedback = 0
    refused: Counter[str] = Counter()
    while True:
        turns.refresh()
        after = positions(log, turns)
        # What another shipper stored and truncated meanwhile is no partition any more.
        waiting &= after.keys()
        with collector_paused():
            try:
                batch = log.poll(after, max_events=max_turns, max_bytes=max_bytes)
            except LostEvents:
                turns.refresh()
                if positions(log, turns) != after:
                    # Another shipper stored them, and truncated the log.
                    continue
                raise
            if batch.positions:
                kept = [event for event in batch.events if not erased(event)]
                num_feedback += _append_feedback([each for each in kept if isinstance(each, Feedback)], feedback)
                came = [each for each in kept if isinstance(each, Turn)]
                fresh = _first_of_each(came, turns, "turn_id", _when(came))
                if turns.append(turns_to_arrow(fresh), batch.positions) is None:
                    continue
                num_turns += len(fresh)
                refused += Counter({ERASED: len(batch.events) - len(kept), DUPLICATE_TURN: len(came) - len(fresh)})
                on_turns(len(fresh))
        waiting -= batch.at_end
        if not waiting:
            break
    # The feedback beside a turn was stored before it: so what these positions cover is on disk, whoever stored it.
    turns.refresh()
    feedback.refresh()
    feedback.sync()
    turns.sync()
    log.truncate(positions(log, turns))
    return Ingested(num_turns=num_turns, num_feedback=num_feedback, refused=+refused)


def positions(log: EventLog, turns: Table) -> dict[str, int]:
    """How far each partition was read, by the table's own account."""
    return {partition: turns.position(partition) or 0 for partition in log.partitions()}


def _append_feedback(given: Sequence[Feedback], table: Table) -> int:
    """Append what is not there yet; how many that were."""
    while given:
        table.refresh()
        fresh = _first_of_each(given, table, "feedback_id")
        if not fresh or table.append(feedback_to_arrow(fresh), {}) is not None:
            return len(fresh)
    return 0


def _when(turns: Sequence[Turn]) -> ds.Expression | None:
    """Where a copy of one of these turns may lie: a turn delivered twice was finished once, so few files are opened.

    None for turns of elsewhere: a log that states no time is read at another time when it is imported again.
    """
    if not turns or any(turn.policy_version == FOREIGN for turn in turns):
        return None
    times_s = [turn.finished_at_s for turn in turns]
    return (ds.field("finished_at_s") >= min(times_s)) & (ds.field("finished_at_s") <= max(times_s))


def _first_of_each(events: Sequence[_Kind], table: Table, name: str, when: ds.Expression | None = None) -> list[_Kind]:
    ids = [getattr(event, name) for event in events]
    same = ds.field(name).isin(pa.array(ids, pa.string()))
    where = same if when is None else same & when
    seen = set(table.read([name], where=where)[name].to_pylist()) if ids else set()
    fresh = []
    for event, each in zip(events, ids, strict=True):
        if each not in seen:
            seen.add(each)
            fresh.append(event)
    return fresh
