"""Data files written anew from others: without some of their rows, or several put together."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from sdpo_ray.tables.commits import ROWS_A_GROUP
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.specs import BATCH, TableSpec

Keep = Callable[[pa.RecordBatch], pa.RecordBatch]


def written(
    place: TableLocation, names: Sequence[str], kind: TableSpec, *, keep: Keep | None = None
) -> AddAction | None:
    """One file with the rows of these, in their order; with `keep`, with what it leaves of them: None for nothing."""
    batches = (rows if keep is None else keep(rows) for name in names for rows in _rows(place, name))
    groups = _groups(batches, kind.schema)
    first = next(groups, None)
    if first is None:
        return None
    anew = f"part-{uuid.uuid4()}.zstd.parquet"
    statistics = _Statistics(kind)
    with pq.ParquetWriter(anew, kind.schema, filesystem=place.filesystem, compression="zstd") as file:
        for rows in chain([first], groups):
            file.write_table(rows, row_group_size=ROWS_A_GROUP)
            statistics.add(rows)
    size = place.filesystem.get_file_info(anew).size
    return AddAction(anew, size, {}, _now_ms(), keep is not None, statistics.as_json())


def taken_away(names: Iterable[str], *, data_change: bool) -> list[RemoveAction]:
    """`data_change`: whether their rows go with them."""
    return [RemoveAction(name, data_change, _now_ms()) for name in names]


def _rows(place: TableLocation, name: str) -> Iterator[pa.RecordBatch]:
    with place.filesystem.open_input_file(name) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(ROWS_A_GROUP, use_threads=False)


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows, as many at a time as a row group has."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while waiting.num_rows >= ROWS_A_GROUP:
            yield waiting.slice(0, ROWS_A_GROUP)
            waiting = waiting.slice(ROWS_A_GROUP)
    if waiting.num_rows:
        yield waiting


class _Statistics:
    """What Delta's log says of a file, as its protocol has it ("Per-file Statistics")."""

    def __init__(self, kind: TableSpec) -> None:
        self._columns = (BATCH, kind.time_column)
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
