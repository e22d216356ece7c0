"""The table `pending`: an index of every turn that may still be part of a pair, in small rows without user text.

Pairing reads it instead of `turns`. An answer stays in it for `curate.follow_up_days`, paired or not, so that a second
follow-up of the same answer is recognised.
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
_ROW = list(PairingRow.__dataclass_fields__)
_KEYED = ["turn_id", "keys", "started_at_s", "finished_at_s", "batch"]


def index(turns: Table, pending: Table, *, max_turns: int = 20_000) -> None:
    """Add the new turns of `turns` to `pending`, exactly once, in batches of about `max_turns` rows.

    A round of pairing takes whole batches, so their size bounds a round.
    """
    while True:
        turns.refresh()
        pending.refresh()
        seen = pending.position(_TURNS) or 0
        if seen >= turns.batch:
            return
        upto = _whole_batches(turns, after=seen, upto=turns.batch, max_rows=max_turns)
        # Without this, a power cut could lose a batch of `turns`, and its number would be given to other rows.
        turns.sync()
        pending.append(_rows(turns.read(_KEYED, after=seen, upto=upto)), {_TURNS: upto})


def pairing_cursor(pending: Table, *, decided: int, seen: int, settled: int, max_turns: int) -> PairingCursor:
    """Cursor of the next round: whole batches after `decided` and up to `settled`, with at most `max_turns` turns.

    At least one batch is taken, whatever its size.
    """
    settled = max(settled, decided)
    upto = _whole_batches(pending, after=decided, upto=settled, max_rows=max_turns)
    return PairingCursor(decided=decided, upto=upto, seen=seen)


def related(pending: Table, cursor: PairingCursor, *, newest: int) -> list[PairingRow]:
    """The turns that `pairing.pair` needs, up to batch `newest`; a batch that arrives during this call is left out."""
    new = pending.read(["parent"], after=cursor.decided, upto=cursor.upto)["parent"].to_pylist()
    late = pending.read(["continuation"], after=cursor.seen, upto=newest)["continuation"].to_pylist()
    keys = pa.array({*new, *late} - {""}, pa.string())
    if not len(keys):
        return []
    shares_key = ds.field("parent").isin(keys) | ds.field("continuation").isin(keys)
    return [PairingRow(**row) for row in pending.read(_ROW, where=shares_key, upto=newest).to_pylist()]


def _whole_batches(table: Table, *, after: int, upto: int, max_rows: int) -> int:
    """The last batch, at most `upto`, with at most `max_rows` rows after batch `after`; at least one batch is taken."""
    sizes: Counter[int] = Counter(table.read([BATCH], after=after, upto=upto)[BATCH].to_pylist())
    size = 0
    for batch in sorted(sizes):
        size += sizes[batch]
        if size > max_rows and size > sizes[batch]:
            return batch - 1
    return upto


def _rows(turns: pa.Table) -> pa.Table:
    """Rows of `PENDING`, without turns that have no keys: those cannot be paired."""
    keys = turns["keys"]
    columns = {name: pc.struct_field(keys, name) for name in ("prompt", "parent", "continuation")}
    columns |= {name: turns[name] for name in ("turn_id", "started_at_s", "finished_at_s")}
    rows = pa.table(columns | {"turn_batch": turns["batch"]}).select(PENDING.names).cast(PENDING)
    return rows.filter(pc.not_equal(rows["continuation"], ""))
