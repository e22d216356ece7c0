"""Tables of older schemas, brought to today's in one commit.

The version of a table's schema is a position of its log, so it changes in the commit that changes the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Interaction, Turn
from sdpo_ray.tables.arrow_schemas import LIGHT, interactions_to_arrow, turns_to_arrow
from sdpo_ray.tables.commits import (
    APPENDED,
    MIGRATED,
    NO_HOOKS,
    REWRITTEN,
    TRIES,
    WRITER,
    carrying,
    commit_rows,
    number,
    opened,
    pause,
)
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.specs import BATCH, FEEDBACKS, PENDINGS, SCHEMA_VERSION, TableSpec

_Record = TypeVar("_Record", Turn, Interaction)
_ROWS = 1024
"""Of a file that are in memory at once."""

# Version 1. Its pairing keys were digests without a key, made of what was stored. Today's are keyed and cover the words
# before redaction, which are not known any more: its turns have none, and are not paired.
_TURN_1 = (
    *("turn_id", "tenant", "user", "conversation_id", "consent", "messages", "tools", "template_kwargs", "response"),
    *("prompt_ids", "response_ids", "response_logprobs", "version_spans", "finish_reason", "sampling"),
    *("started_at_s", "finished_at_s"),
)
_TURNS_1 = (*_TURN_1, "prompt_key", "parent_key", "continuation_key")
_INTERACTIONS_1 = (
    *("interaction_id", "policy_version", "conversation", "follow_up_at_s", "follow_up_turn_id", "follow_up", "turn"),
)

# Version 2. It did not know penalties and constraints of sampling, calls of tools in an answer, and who was answered by
# a personal policy; nobody was.
_TURNS_2 = (BATCH, "finished_at_s", *(name for name in (*_TURN_1, "keys", "redactions") if name != "finished_at_s"))
_INTERACTIONS_2 = (
    *(BATCH, "follow_up_at_s", "interaction_id", "conversation", "follow_up_turn_id", "follow_up", "turn"),
    *("policy_version", "tenant", "user", "split", "content"),
)


def open_table(place: TableLocation, kind: TableSpec) -> DeltaTable:
    """The table, created where there is none, migrated where it is old. Raises ConfigError, DeltaError."""
    _create(place, kind)
    for attempt in range(TRIES):
        delta = opened(place)
        columns = [field.name for field in delta.schema().fields]
        version = number(delta, MIGRATED)
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{place.uri} has version {version} of the tables, this release knows {SCHEMA_VERSION}: run a newer one"
            )
        if version == SCHEMA_VERSION and columns == kind.schema.names:
            return delta
        was = (kind.name, version, tuple(columns))
        step = _STEPS.get(was)
        if step is None and was not in _UNCHANGED:
            raise ConfigError(f"{place.uri} is no table `{kind.name}` of ours: move it away, or name another directory")
        try:
            if step is None:
                commit_rows(delta, kind.schema.empty_table(), {MIGRATED: SCHEMA_VERSION})
            else:
                _migrate(delta, place, kind, step)
        except DeltaError:
            # Another process migrated it, or one of the older release still appends.
            if attempt == TRIES - 1:
                raise
            pause(attempt)
    raise ConfigError(f"{place.uri} could not be migrated: stop what an older release runs on it, then start again")


def _create(place: TableLocation, kind: TableSpec) -> None:
    try:
        DeltaTable.create(
            place.uri,
            kind.schema,
            # Of two processes that create it at once, both go on with the one that is there.
            mode="ignore",
            configuration=_configuration(kind),
            commit_properties=carrying({MIGRATED: SCHEMA_VERSION}),
        )
    except DeltaError:
        if not DeltaTable.is_deltatable(place.uri):
            raise


def _configuration(kind: TableSpec) -> dict[str, str]:
    return {
        "delta.dataSkippingStatsColumns": f"{BATCH},{kind.time_column}",
        # How long a committer may be paused between looking at the log and writing its entry.
        "delta.logRetentionDuration": "interval 1 days",
    }


def _migrate(delta: DeltaTable, place: TableLocation, kind: TableSpec, step: Callable[[pa.Table], pa.Table]) -> None:
    if delta.metadata().configuration != _configuration(kind):
        delta.alter.set_table_properties(_configuration(kind))
    actions = pa.table(delta.get_add_actions()).sort_by("modification_time")
    files = actions["path"].to_pylist()
    carried = {MIGRATED: SCHEMA_VERSION, REWRITTEN: number(delta, REWRITTEN) + 1}
    if not number(delta, MIGRATED):
        carried[APPENDED] = len(files)
    write_deltalake(
        delta,
        pa.RecordBatchReader.from_batches(kind.schema, _rows(place, kind, files, step)),
        mode="overwrite",
        schema_mode="overwrite",
        # Overwriting where a condition holds fails beside an append; overwriting all would leave its rows as they are.
        predicate="true",
        writer_properties=WRITER,
        commit_properties=carrying(carried),
        post_commithook_properties=NO_HOOKS,
    )


def _rows(
    place: TableLocation, kind: TableSpec, files: Sequence[str], step: Callable[[pa.Table], pa.Table]
) -> Iterator[pa.RecordBatch]:
    """Rows of all files, a bounded number at a time.

    A file of version 1 was one commit and becomes one batch; later rows say themselves which batch they are of.
    """
    for number_of_file, name in enumerate(files, start=1):
        with place.filesystem.open_input_file(name) as source, pq.ParquetFile(source) as file:
            for some in file.iter_batches(_ROWS, use_threads=False):
                rows = pa.Table.from_batches([some])
                batch = rows[BATCH] if BATCH in rows.column_names else pa.repeat(number_of_file, rows.num_rows)
                yield from kind.numbered(step(rows), batch).to_batches()


def _turns_of_1(rows: pa.Table) -> pa.Table:
    return turns_to_arrow(_records(rows.select(_TURN_1), Turn))


def _interactions_of_1(rows: pa.Table) -> pa.Table:
    return interactions_to_arrow(_records(rows.drop_columns(["policy_version"]), Interaction))


def _turns_of_2(rows: pa.Table) -> pa.Table:
    return turns_to_arrow(_records(rows.drop_columns([BATCH]), Turn))


def _interactions_of_2(rows: pa.Table) -> pa.Table:
    return interactions_to_arrow(_records(rows.drop_columns([BATCH, *LIGHT.names]), Interaction))


def _records(rows: pa.Table, kind: type[_Record]) -> list[_Record]:
    """What a record has today and had not then takes its default."""
    return msgspec.convert(rows.to_pylist(), list[kind])  # type: ignore[valid-type]


_STEPS: dict[tuple[str, int, tuple[str, ...]], Callable[[pa.Table], pa.Table]] = {
    ("turns", 0, _TURNS_1): _turns_of_1,
    ("interactions", 0, _INTERACTIONS_1): _interactions_of_1,
    ("turns", 2, _TURNS_2): _turns_of_2,
    ("interactions", 2, _INTERACTIONS_2): _interactions_of_2,
}
"""By table, by the version that its log states, 0 for version 1, and by the columns."""
_UNCHANGED = {(kind.name, 2, tuple(kind.schema.names)) for kind in (FEEDBACKS, PENDINGS)}
"""What has the same rows in the next version."""
