"""Ingest: event log -> tables `turns` and `feedback`, exactly once, in bounded batches.

Turns and the log positions they were read up to are one commit. So an ingest that dies leaves both or neither, and of
two concurrent ingests one loses its commit and reads again. Feedback of the same batch is committed before the turns;
when it is read again, it is recognised by its id. The log is truncated once the rows are on disk in the tables. Events
of erased users are dropped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.curate.gc_pause import gc_paused
from sdpo_ray.errors import LostEvents
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.records import FOREIGN, Event, Feedback, Turn
from sdpo_ray.tables.arrow_schemas import feedback_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table

DUPLICATE_TURN = "duplicate_turn"
"""A turn was delivered twice; the first copy is kept. Repeated feedback is not counted: clients may send it twice."""
ERASED = "erased"
"""An event of a user who was erased after it was logged."""
_Kind = TypeVar("_Kind", Turn, Feedback)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What one call of `ingest` did. Made by it; read by `curate.pipeline`."""

    num_turns: int
    num_feedback: int
    refused: Counter[str]
    """Events that were not stored, by DUPLICATE_TURN or ERASED."""


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
    """Read every partition to its end at some moment of this call, store the events, then truncate the log.

    A batch has at most `max_turns` events and about `max_bytes` bytes. `erased(event)` tells whether an event belongs
    to an erased user; `on_turns(n)` is called after each commit of n turns. Raises CorruptLog, LostEvents.
    """
    unfinished = set(log.partitions())
    num_turns = num_feedback = 0
    refused: Counter[str] = Counter()
    while True:
        turns.refresh()
        after = positions(log, turns)
        # A partition that another ingest stored and truncated meanwhile is gone.
        unfinished &= after.keys()
        with gc_paused():
            try:
                batch = log.poll(after, max_events=max_turns, max_bytes=max_bytes)
            except LostEvents:
                turns.refresh()
                if positions(log, turns) != after:
                    # Another ingest stored them, and truncated the log.
                    continue
                raise
            if batch.positions:
                kept = [event for event in batch.events if not erased(event)]
                num_feedback += _append_feedback([each for each in kept if isinstance(each, Feedback)], feedback)
                delivered = [each for each in kept if isinstance(each, Turn)]
                fresh = _first_of_each(delivered, turns, "turn_id", _finished_within(delivered))
                if turns.append(turns_to_arrow(fresh), batch.positions) is None:
                    continue
                num_turns += len(fresh)
                num_duplicates = len(delivered) - len(fresh)
                refused += Counter({ERASED: len(batch.events) - len(kept), DUPLICATE_TURN: num_duplicates})
                on_turns(len(fresh))
        unfinished -= batch.at_end
        if not unfinished:
            break
    # Feedback is committed before the turns of its batch, by any process. So after both syncs everything that these
    # positions cover is on disk.
    turns.refresh()
    feedback.refresh()
    feedback.sync()
    turns.sync()
    log.truncate(positions(log, turns))
    return Ingested(num_turns=num_turns, num_feedback=num_feedback, refused=+refused)


def positions(log: EventLog, turns: Table) -> dict[str, int]:
    """Position up to which each partition is stored, as committed in `turns`; 0 for a new partition."""
    return {partition: turns.position(partition) or 0 for partition in log.partitions()}


def _append_feedback(feedback: Sequence[Feedback], table: Table) -> int:
    """Append the feedback that the table does not have yet; the number of rows appended."""
    while feedback:
        table.refresh()
        fresh = _first_of_each(feedback, table, "feedback_id")
        if not fresh or table.append(feedback_to_arrow(fresh), {}) is not None:
            return len(fresh)
    return 0


def _finished_within(turns: Sequence[Turn]) -> ds.Expression | None:
    """Condition that every stored copy of these turns meets: copies have the same time, so few files are opened.

    None for imported turns: a log without times gets other times when it is imported again.
    """
    if not turns or any(turn.policy_version == FOREIGN for turn in turns):
        return None
    times_s = [turn.finished_at_s for turn in turns]
    return (ds.field("finished_at_s") >= min(times_s)) & (ds.field("finished_at_s") <= max(times_s))


def _first_of_each(events: Sequence[_Kind], table: Table, name: str, when: ds.Expression | None = None) -> list[_Kind]:
    """The first event of each id in column `name`, without those whose id is in the table already."""
    ids = [getattr(event, name) for event in events]
    same = ds.field(name).isin(pa.array(ids, pa.string()))
    where = same if when is None else same & when
    seen = set(table.read([name], where=where)[name].to_pylist()) if ids else set()
    fresh = []
    for event, event_id in zip(events, ids, strict=True):
        if event_id not in seen:
            seen.add(event_id)
            fresh.append(event)
    return fresh
