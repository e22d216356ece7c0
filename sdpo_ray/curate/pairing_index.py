"""The side table `pending`: every turn that may still be part of a pair, as light rows that never hold user text.

Pairing asks it instead of `turns`: an answer waits in it for `curate.follow_up_days`, decided or not, since a second
follow-up of the same answer must be known for what it is.
"""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.curate.pairing import PairingCursor, PairingRow
from sdpo_ray.tables.arrow_schemas import PENDING
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.specs import BATCH

_TURNS = "turns"
_WAITING = list(PairingRow.__dataclass_fields__)
_KEYED = ["turn_id", "keys", "started_at_s", "finished_at_s", "batch"]


def index(turns: Table, pending: Table, *, max_turns: int = 20_000) -> None:
    """Bring `pending` up to `turns`, exactly once; its batches, of which a round takes whole ones, have `max_turns`."""
    while True:
        turns.refresh()
        pending.refresh()
        seen = pending.position(_TURNS) or 0
        if seen >= turns.batch:
            return
        upto = _whole_batches(turns, after=seen, upto=turns.batch, max_rows=max_turns)
        # A batch that a power cut took away would be another one when its number comes again.
        turns.sync()
        pending.append(_rows(turns.read(_KEYED, after=seen, upto=upto)), {_TURNS: upto})


def pairing_cursor(pending: Table, *, decided: int, seen: int, settled: int, max_turns: int) -> PairingCursor:
    """The follow-ups of the next round: whole batches up to `settled`, as many turns as one round takes."""
    settled = max(settled, decided)
    upto = _whole_batches(pending, after=decided, upto=settled, max_rows=max_turns)
    return PairingCursor(decided=decided, upto=upto, seen=seen)


def related(pending: Table, pairing_cursor: PairingCursor, *, newest: int) -> list[PairingRow]:
    """What `sessionize.pair` asks for, up to the batch `newest`: one that comes during this call is known next time."""
    new = pending.read(["parent"], after=pairing_cursor.decided, upto=pairing_cursor.upto)["parent"].to_pylist()
    late = pending.read(["continuation"], after=pairing_cursor.seen, upto=newest)["continuation"].to_pylist()
    keys = pa.array({*new, *late} - {""}, pa.string())
    if not len(keys):
        return []
    shares_key = ds.field("parent").isin(keys) | ds.field("continuation").isin(keys)
    return [PairingRow(**row) for row in pending.read(_WAITING, where=shares_key, upto=newest).to_pylist()]


def _whole_batches(table: Table, *, after: int, upto: int, max_rows: int) -> int:
    """The last batch, at most `upto`, with which no more than `max_rows` rows lie behind `after`; at least the next."""
    sizes: Counter[int] = Counter(table.read([BATCH], after=after, upto=upto)[BATCH].to_pylist())
    size = 0
    for batch in sorted(sizes):
        size += sizes[batch]
        if size > max_rows and size > sizes[batch]:
            return batch - 1
    return upto


def _rows(turns: pa.Table) -> pa.Table:
    """Rows of `PENDING`; a turn without keys is nobody's to pair."""
    keys = turns["keys"]
    columns = {name: pc.struct_field(keys, name) for name in ("prompt", "parent", "continuation")}
    columns |= {name: turns[name] for name in ("turn_id", "started_at_s", "finished_at_s")}
    rows = pa.table(columns | {"turn_batch": turns["batch"]}).select(PENDING.names).cast(PENDING)
    return rows.filter(pc.not_equal(rows["continuation"], ""))
