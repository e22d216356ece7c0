"""Journal -> table `turns`, exactly once.

The rows and the position they were read up to are one commit, so a shipper that dies leaves both or neither, and
of two shippers at once one loses and looks again. What is on disk in the table leaves the log.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.curate.sessionize import keyed
from sdpo_ray.curate.store import TURN_KEYS, Table
from sdpo_ray.records import Turn
from sdpo_ray.tables import turns_to_arrow

logger = logging.getLogger(__name__)

DUPLICATE_TURN = "duplicate_turn"
_SHIPMENT = "shipment"
_MAX_TURNS = 20_000


class EventLog(Protocol):
    """Where turns come from: `capture.segments.SegmentLog`. A partition is read in order, by position."""

    def ends(self) -> dict[str, int]:
        """The end of every partition at one moment: no turn before it follows an answer behind it."""

    def read(self, partition: str, after: int, until: int) -> tuple[list[Turn], int]:
        """Turns between two positions, and the position to go on from."""

    def truncate(self, positions: Mapping[str, int]) -> int:
        """Forget what lies before these positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """Made by `ship`; read by `curate.stream`."""

    num_turns: int
    refused: Counter[str]


def ship(log: EventLog, table: Table) -> Shipped:
    """Bring `table` up to where the log ends now, then truncate the log. Raises CorruptJournal."""
    ends = log.ends()
    num_turns = 0
    refused: Counter[str] = Counter()
    while True:
        table.refresh()
        turns, positions = _read(log, ends, table)
        if not positions:
            break
        fresh = _first_of_each(turns, table)
        # All shipments share one position, so that two that see the same turn in two places cannot both commit.
        shipment = {_SHIPMENT: (table.position(_SHIPMENT) or 0) + 1}
        if not table.append(_rows(fresh), positions | shipment):
            continue
        num_turns += len(fresh)
        if repeated := len(turns) - len(fresh):
            refused[DUPLICATE_TURN] += repeated
            logger.warning("%d turns came twice; the first of each is kept", repeated)
    if ends:
        table.sync()
        log.truncate({name: table.position(name) or 0 for name in ends})
    return Shipped(num_turns=num_turns, refused=refused)


def _read(log: EventLog, ends: Mapping[str, int], table: Table) -> tuple[list[Turn], dict[str, int]]:
    """About `_MAX_TURNS` turns that the table has not seen, and the positions behind them."""
    turns: list[Turn] = []
    positions: dict[str, int] = {}
    for partition, end in ends.items():
        after = table.position(partition) or 0
        if after >= end or len(turns) >= _MAX_TURNS:
            continue
        read, position = log.read(partition, after, end)
        if position > after:
            turns += read
            positions[partition] = position
    return turns, positions


def _first_of_each(turns: Sequence[Turn], table: Table) -> list[Turn]:
    ids = pa.array([turn.turn_id for turn in turns], pa.string())
    stored = table.read(["turn_id"], where=ds.field("turn_id").isin(ids))["turn_id"].to_pylist()
    seen = set(stored)
    fresh = []
    for turn in turns:
        if turn.turn_id not in seen:
            seen.add(turn.turn_id)
            fresh.append(turn)
    return fresh


def _rows(turns: Sequence[Turn]) -> pa.Table:
    rows = turns_to_arrow(turns)
    keys = [keyed(turn) for turn in turns]
    for field in TURN_KEYS:
        rows = rows.append_column(field, pa.array([getattr(key, field.name) for key in keys], field.type))
    return rows
