"""Rewrite data files: drop some of their rows, or combine several into one."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from sdpo_ray.tables.commits import ROWS_PER_GROUP
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.specs import BATCH, TableSpec

Keep = Callable[[pa.RecordBatch], pa.RecordBatch]


def rewritten(
    location: TableLocation, names: Sequence[str], spec: TableSpec, *, keep: Keep | None = None
) -> AddAction | None:
    """Write one file with the rows of these files, in their order, as filtered by `keep`; None when no rows are left.

    The returned action adds the file to Delta's log.
    """
    batches = (rows if keep is None else keep(rows) for name in names for rows in _rows(location, name))
    groups = _groups(batches, spec.schema)
    first = next(groups, None)
    if first is None:
        return None
    name = f"part-{uuid.uuid4()}.zstd.parquet"
    statistics = _Statistics(spec)
    with pq.ParquetWriter(name, spec.schema, filesystem=location.filesystem, compression="zstd") as file:
        for rows in chain([first], groups):
            file.write_table(rows, row_group_size=ROWS_PER_GROUP)
            statistics.add(rows)
    size = location.filesystem.get_file_info(name).size
    return AddAction(name, size, {}, _now_ms(), keep is not None, statistics.as_json())


def remove_actions(names: Iterable[str], *, data_change: bool) -> list[RemoveAction]:
    """Actions that remove these files from Delta's log. `data_change` says whether rows are removed with them."""
    return [RemoveAction(name, data_change, _now_ms()) for name in names]


def _rows(location: TableLocation, name: str) -> Iterator[pa.RecordBatch]:
    with location.filesystem.open_input_file(name) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(ROWS_PER_GROUP, use_threads=False)


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of one row group each."""
    rest = schema.empty_table()
    for batch in batches:
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while rest.num_rows >= ROWS_PER_GROUP:
            yield rest.slice(0, ROWS_PER_GROUP)
            rest = rest.slice(ROWS_PER_GROUP)
    if rest.num_rows:
        yield rest


class _Statistics:
    """Statistics of a file for Delta's log (Delta protocol, "Per-file Statistics")."""

    def __init__(self, spec: TableSpec) -> None:
        self._columns = (BATCH, spec.time_column)
        self._num_records = 0
        self._ranges: dict[str, tuple[float, float]] = {}

    def add(self, rows: pa.Table) -> None:
        self._num_records += rows.num_rows
        for name in self._columns:
            bounds = pc.min_max(rows[name]).as_py()
            low, high = self._ranges.get(name, (bounds["min"], bounds["max"]))
            self._ranges[name] = (min(low, bounds["min"]), max(high, bounds["max"]))

    def as_json(self) -> str:
        return json.dumps(
            {
                "numRecords": self._num_records,
                "minValues": {name: low for name, (low, _) in self._ranges.items()},
                "maxValues": {name: high for name, (_, high) in self._ranges.items()},
                "nullCount": dict.fromkeys(self._columns, 0),
            }
        )


def _now_ms() -> int:
    return int(time.time() * 1000)
