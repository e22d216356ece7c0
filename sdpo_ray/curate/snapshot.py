"""Draw the snapshot of one update from the table `interactions`; write its rows, their digest and the READY marker."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.sampling import COUNTED_COLUMNS, LIGHT_COLUMNS, count_trainable, draw
from sdpo_ray.errors import DataError
from sdpo_ray.io.files import is_ready, read_json, sealed_directory, write_json
from sdpo_ray.records import Interaction, Snapshot
from sdpo_ray.tables.arrow_schemas import interactions_from_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import write_interactions

HELD_OUT = "held_out"
"""Directory within a personal policy's snapshot that holds its held-out interactions."""
_RECORD = "snapshot.json"


def count_new(table: Table, *, after: int, champion_version: int, now_s: float, config: CurateConfig) -> int:
    """Number of trainable interactions after batch `after`, a `Snapshot.last_batch` or 0. `now_s` is Unix time."""
    table.refresh()
    rows = table.read([*COUNTED_COLUMNS], after=after, upto=table.batch)
    return count_trainable(rows, champion_version=champion_version, now_s=now_s, config=config)


def draw_snapshot(
    table: Table,
    final: Path,
    *,
    champion_version: int,
    seed: int,
    now_s: float,
    last_batch: int,
    config: CurateConfig,
    where: ds.Expression | None = None,
    personal: bool = False,
) -> Snapshot:
    """Draw a snapshot from the current table into the directory `final`; if it is there already, read it back.

    `now_s` is Unix time; `last_batch` is that of the previous snapshot, 0 when there was none; `where` selects rows.
    With `personal`, the newest rows are drawn, and held-out rows are written to `final`/held_out. Raises DataError when
    nothing can be drawn.
    """
    if is_ready(final):
        return replace(read_json(final / _RECORD, Snapshot), path=str(final))
    while True:
        table.refresh()
        batch, version = table.batch, table.version
        rows = table.read([*LIGHT_COLUMNS], where=where, upto=batch)
        plan = draw(
            rows,
            champion_version=champion_version,
            seed=seed,
            now_s=now_s,
            last_batch=last_batch,
            config=config,
            newest=personal,
        )
        if not plan.interaction_ids:
            more = "all interactions are held out, more conversations are needed; " if plan.held_out_ids else ""
            raise DataError(f"nothing to draw: {more}{plan.rule}")
        wanted = (*plan.interaction_ids, *(plan.held_out_ids if personal else ()))
        found = _interactions(table, wanted, rows)
        if len(found) == len(wanted):
            break
        if table.version == version:
            raise DataError(f"{len(wanted)} interactions were drawn, the table has {len(found)} of them")
        # Some were erased meanwhile: draw again from the new version of the table.
    drawn, held_out = found[: len(plan.interaction_ids)], found[len(plan.interaction_ids) :]
    with sealed_directory(final) as partial:
        digest = write_interactions(partial, drawn)
        if personal:
            (partial / HELD_OUT).mkdir()
            write_interactions(partial / HELD_OUT, held_out)
        snapshot = Snapshot(
            snapshot_id=f"{final.name}-{digest[:12]}",
            table_version=version,
            seed=seed,
            rule=plan.rule,
            interaction_ids=plan.interaction_ids,
            held_out_ids=plan.held_out_ids,
            path=str(final),
            digest=digest,
            last_interaction_at_s=max(interaction.follow_up_at_s for interaction in drawn),
            last_batch=batch,
            not_drawn=plan.not_drawn,
        )
        write_json(partial / _RECORD, snapshot)
    return snapshot


def _interactions(table: Table, ids: Sequence[str], light: pa.Table) -> list[Interaction]:
    """The interactions with these ids, in their order, without those that the table does not have.

    `light` has their batches, so only the files of those are read. Raises DataError for an id that occurs twice.
    """
    names = pa.array(ids, pa.string())
    batches = pc.unique(light["batch"].filter(pc.is_in(light["interaction_id"], value_set=names)))
    first, last = pc.min_max(batches).as_py().values()
    where = ds.field("batch").isin(batches) & ds.field("interaction_id").isin(names)
    rows = table.read(where=where, after=first - 1, upto=last)
    found = {interaction.interaction_id: interaction for interaction in interactions_from_arrow(rows)}
    if rows.num_rows > len(found):
        raise DataError(f"{rows.num_rows} rows of {table.name} have {len(found)} ids")
    return [found[each] for each in ids if each in found]
