"""Specifications of the four tables: schema, id column, time column."""

from dataclasses import dataclass

import pyarrow as pa

from sdpo_ray.tables.arrow_schemas import FEEDBACK, INTERACTION, PENDING, TURN

BATCH = "batch"
"""Column of every table: the number of the commit that added the row. Compaction and erasure keep it."""
SCHEMA_VERSION = 3
"""Version of the schemas below; raise it when one of them changes. `tables.create` refuses any other version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One table. Read by the modules of `tables`."""

    name: str
    rows: pa.Schema
    """Schema of appended rows, without the column `batch`."""
    id_column: str
    time_column: str
    """The only column besides `batch` with statistics in Delta's log: statistics of others would hold user text."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the table. Columns with statistics come first: deltalake 1.6.6 writes none after a struct."""
        first = [pa.field(BATCH, pa.int64()), self.rows.field(self.time_column)]
        return pa.schema([*first, *(field for field in self.rows if field.name != self.time_column)])

    def numbered(self, rows: pa.Table, batch: pa.Array | pa.ChunkedArray | int) -> pa.Table:
        """`rows` with the column `batch`, one number for all or one per row. Raises ArrowInvalid, KeyError."""
        batches = pa.repeat(batch, rows.num_rows) if isinstance(batch, int) else batch
        return rows.append_column(BATCH, batches).select(self.schema.names).cast(self.schema)


TURNS = TableSpec(name="turns", rows=TURN, id_column="turn_id", time_column="finished_at_s")
FEEDBACKS = TableSpec(name="feedback", rows=FEEDBACK, id_column="feedback_id", time_column="given_at_s")
PENDINGS = TableSpec(name="pending", rows=PENDING, id_column="turn_id", time_column="finished_at_s")
INTERACTIONS = TableSpec(
    name="interactions", rows=INTERACTION, id_column="interaction_id", time_column="follow_up_at_s"
)
