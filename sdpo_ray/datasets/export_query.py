"""Select the rows of an export from tables or a snapshot, a batch at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.curate.admission.reactions import reaction_in_comment
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.datasets.export_rows import ExportKind, interaction_rows, label_rows, preference_rows
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback, Turn
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, interactions_from_arrow, turns_from_arrow
from sdpo_ray.tables.create import table_exists
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import SNAPSHOT_FILE

UNEDITED = "unedited"
"""Reason: the edited answer equals the answer."""
_ROWS_AT_ONCE = 2_000
_FEEDBACK_AT_ONCE = 20_000
"""The turns of feedback may be anywhere in their table, which is read once for each so many rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """Filters of an export; None for any value. Made by `jobs.export`."""

    since_s: float | None = None
    """Earliest Unix time of the follow-up or the feedback."""
    until_s: float | None = None
    """Rows at this Unix time and later are left out."""
    tenant: str | None = None
    version: int | None = None
    """Version of the policy that answered."""

    def rows(self, time_column: str) -> ds.Expression | None:
        """Filter by time and tenant; None for all rows."""
        parts = [
            *([ds.field(time_column) >= self.since_s] if self.since_s is not None else []),
            *([ds.field(time_column) < self.until_s] if self.until_s is not None else []),
            *([ds.field("tenant") == self.tenant] if self.tenant is not None else []),
        ]
        return _all(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSelection:
    """Rows that a query selects. Made by this module; read by `datasets.export`."""

    num_rows: int
    """Including those that will be left out."""
    tables: Iterator[pa.Table]
    """Batches of rows."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be exported, by reason; complete once `tables` is exhausted."""


def from_snapshot(directory: Path, query: ExportQuery) -> ExportSelection:
    """Interactions of a snapshot, in the order of training."""
    rows = ds.dataset(directory / SNAPSHOT_FILE)
    where = _of_version(query)
    batches = rows.to_batches(filter=where, batch_size=_ROWS_AT_ONCE, use_threads=False)
    return ExportSelection(
        num_rows=rows.count_rows(filter=where),
        tables=(interaction_rows(interactions_from_arrow(pa.Table.from_batches([batch]))) for batch in batches),
    )


def from_table(layout: Layout, query: ExportQuery) -> ExportSelection:
    """Interactions of the table, in the order of admission. Raises ConfigError if there is no table."""
    _require(layout, "interactions")
    table, where = Table.interactions(layout), _of_version(query)
    counts = _by_batch(table, where)

    def tables() -> Iterator[pa.Table]:
        for after, upto in _spans(counts, _ROWS_AT_ONCE):
            rows = table.read(where=where, after=after, upto=upto)
            ordered = rows.sort_by([("follow_up_at_s", "ascending"), ("interaction_id", "ascending")])
            yield interaction_rows(interactions_from_arrow(ordered))

    return ExportSelection(num_rows=sum(counts.values()), tables=tables())


def from_feedback(layout: Layout, query: ExportQuery, what: ExportKind) -> ExportSelection:
    """Preferences or labels, in the order of the feedback. Raises ConfigError if there is no table."""
    _require(layout, "feedback")
    table, turns = Table.feedback(layout), Table.turns(layout)
    has = ds.field("edited") != "" if what is ExportKind.PREFERENCES else ds.field("thumb").is_valid()
    where = _all([each for each in (has, query.rows("given_at_s")) if each is not None])
    make: Callable[[Sequence[tuple[Feedback, Turn]]], pa.Table] = (
        preference_rows if what is ExportKind.PREFERENCES else label_rows
    )
    counts = _by_batch(table, where)
    left_out: Counter[str] = Counter()

    def tables() -> Iterator[pa.Table]:
        for after, upto in _spans(counts, _FEEDBACK_AT_ONCE):
            rows = table.read(where=where, after=after, upto=upto)
            ordered = rows.sort_by([("given_at_s", "ascending"), ("feedback_id", "ascending")])
            yield make(_with_turns(feedback_from_arrow(ordered), turns, query, what, left_out))

    return ExportSelection(num_rows=sum(counts.values()), tables=tables(), left_out=left_out)


def _with_turns(
    given: Sequence[Feedback], turns: Table, query: ExportQuery, what: ExportKind, left_out: Counter[str]
) -> list[tuple[Feedback, Turn]]:
    ids = pa.array({each.turn_id for each in given}, pa.string())
    found = {turn.turn_id: turn for turn in turns_from_arrow(turns.read(where=ds.field("turn_id").isin(ids)))}
    kept = []
    for feedback in given:
        turn = found.get(feedback.turn_id)
        reason = _reason_to_leave_out(turn, feedback, what)
        if reason is not None:
            left_out[reason] += 1
        elif turn is not None and query.version in (None, turn.policy_version):
            kept.append((feedback, turn))
    return kept


def _reason_to_leave_out(turn: Turn | None, feedback: Feedback, what: ExportKind) -> str | None:
    if isinstance(reaction := reaction_in_comment(turn, feedback), NotAdmitted):
        return reaction.value
    if turn is None or not turn.consent is feedback.consent is Consent.TRAIN:
        return NotAdmitted.NO_CONSENT.value
    return UNEDITED if what is ExportKind.PREFERENCES and feedback.edited == turn.response else None


def _of_version(query: ExportQuery) -> ds.Expression | None:
    version = [] if query.version is None else [ds.field("policy_version") == query.version]
    return _all([each for each in (query.rows("follow_up_at_s"), *version) if each is not None])


def _all(parts: Sequence[ds.Expression]) -> ds.Expression | None:
    return reduce(and_, parts) if parts else None


def _by_batch(table: Table, where: ds.Expression | None) -> dict[int, int]:
    """Number of rows of each batch, oldest batch first."""
    counted = pc.value_counts(table.read(["batch"], where=where, upto=table.batch)["batch"])
    return dict(sorted((each["values"], each["counts"]) for each in counted.to_pylist()))


def _spans(counts: dict[int, int], at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges (after, upto] of neighbouring batches with about `at_once` rows together."""
    after, num_rows = 0, 0
    for batch, n in counts.items():
        num_rows += n
        if num_rows >= at_once or batch == max(counts):
            yield after, batch
            after, num_rows = batch, 0


def _require(layout: Layout, name: str) -> None:
    if not table_exists(layout, name):
        raise ConfigError(f"there is no table {name} under {layout.table(name)}: name another run with --run or --set")
