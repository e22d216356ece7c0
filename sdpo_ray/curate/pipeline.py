"""Incremental curation: new events of the log become interactions.

    log --ingest--> turns --index--> pending --pair, admit--> interactions        (feedback joins at admit)

Each arrow is one commit that carries the position it read up to, so a job that is killed between two of them continues
without repeating or skipping a row. Pairing reads small columns; Ray Data reads the paired turns, checks and admits
them in blocks. A round takes at most `curate.max_batch_turns` turns, however large the backlog is.
Run one curator per root. A second one does no harm, but loses its commits to the first.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission.limits import HOUR_S, AdmissionCounts, within_limits
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.admission.task import REASON, AdmissionTask
from sdpo_ray.curate.ingest import ingest, positions
from sdpo_ray.curate.pairing import Pair, pair
from sdpo_ray.curate.pairing_index import index, pairing_cursor, related
from sdpo_ray.curate.parallel_admission import admit_tasks
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import INTERACTION, feedback_from_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.tombstones import Tombstones

_DECIDED, _SEEN, _FEEDBACK = "pending.decided", "pending.seen", "feedback.decided"
"""Positions in `interactions`: those of `PairingCursor`, and the batch of `feedback` whose comments are decided."""
_LIMIT_COLUMNS = list(AdmissionCounts.__dataclass_fields__)
_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationProgress:
    """What one `Curator.advance` did. Made by it; read by `jobs.curate` and `pipeline.training_loop`."""

    turns_ingested: int
    turns_total: int
    feedback_ingested: int
    interactions_admitted: int
    interactions_total: int
    undecided: int
    """Turns that the next advance decides whether to pair with an earlier answer."""
    backlog_bytes: int
    """Unread part of the event log when this advance began."""
    refused: Counter[str]
    """Events not stored, follow-ups not paired, and reactions not admitted in this advance, by reason."""


class Curator:
    """Curation of one run's tables. Uses Ray only when there is something to admit."""

    def __init__(self, layout: Layout, log: EventLog, *, curate: CurateConfig, capture: CaptureConfig) -> None:
        self._log = log
        self._curate = curate
        self._capture = capture
        self._tombstones = Tombstones(layout)
        self.turns = Table.turns(layout)
        self.feedback = Table.feedback(layout)
        self.pending = Table.pending(layout)
        self.interactions = Table.interactions(layout)

    def advance(self, on_turns: Callable[[int], None] = lambda num_turns: None) -> CurationProgress:
        """Ingest new events, and decide the follow-ups and comments that an earlier advance ingested.

        `on_turns(n)` is called after each commit of n turns. Raises CorruptLog, LostEvents.
        """
        index(self.turns, self.pending, max_turns=self._curate.max_batch_turns)
        self.feedback.refresh()
        settled, settled_feedback = self.pending.batch, self.feedback.batch
        backlog_bytes = self._log.backlog_bytes(positions(self._log, self.turns))
        ingested = ingest(
            self._log,
            self.turns,
            self.feedback,
            max_turns=self._curate.max_batch_turns,
            max_bytes=self._curate.max_batch_mib << 20,
            erased=self._tombstones.covers,
            on_turns=on_turns,
        )
        index(self.turns, self.pending, max_turns=self._curate.max_batch_turns)
        admitted, refused = self._decide(settled, settled_feedback)
        return CurationProgress(
            turns_ingested=ingested.num_turns,
            turns_total=self.turns.num_rows,
            feedback_ingested=ingested.num_feedback,
            interactions_admitted=admitted,
            interactions_total=self.interactions.num_rows,
            undecided=self.pending.read(["turn_id"], after=self.interactions.position(_DECIDED) or 0).num_rows,
            backlog_bytes=backlog_bytes,
            refused=ingested.refused + refused,
        )

    def maintain(self) -> list[str]:
        """Compact the tables that are due, and expire old rows of `pending`. Returns the names of these tables."""
        tables, every = (self.turns, self.feedback, self.pending, self.interactions), self._curate.compact_every
        return [table.name for table in tables if table.is_due(every) and self._maintain(table)]

    def _maintain(self, table: Table) -> bool:
        return table.maintain(
            every=self._curate.compact_every,
            keep_files_h=self._curate.keep_files_h,
            expire_before_s=self._expire_before_s() if table is self.pending else None,
        )

    def _expire_before_s(self) -> float:
        """Unix time before which rows of `pending` expire; rows that are not decided yet never do."""
        before_s = time.time() - self._curate.follow_up_days * _DAY_S
        undecided = self.pending.read(["finished_at_s"], after=self.interactions.position(_DECIDED) or 0)
        oldest_s = pc.min(undecided["finished_at_s"]).as_py()
        return before_s if oldest_s is None else min(before_s, oldest_s)

    def _decide(self, settled: int, settled_feedback: int) -> tuple[int, Counter[str]]:
        """Run rounds until the batches up to `settled` and `settled_feedback` are decided.

        These were in the tables before the last ingest. Returns the number of admitted interactions, and the refusals
        by reason.
        """
        total, refused = 0, Counter[str]()
        # Rows that other processes add meanwhile are left to the next advance: they may add them faster than this loop
        # decides.
        indexed = self.pending.batch
        while True:
            self.interactions.refresh()
            self.pending.refresh()
            decided, seen, commented = (self.interactions.position(name) or 0 for name in (_DECIDED, _SEEN, _FEEDBACK))
            newest = self.pending.batch
            if decided >= settled and seen >= indexed and commented >= settled_feedback:
                return total, refused
            cursor = pairing_cursor(
                self.pending, decided=decided, seen=seen, settled=settled, max_turns=self._curate.max_batch_turns
            )
            pairing = pair(related(self.pending, cursor, newest=newest), cursor)
            comments, unknown = self._comments(commented, settled_feedback)
            rows, not_admitted = self._admit([*map(_task, pairing.pairs), *comments])
            positions = {_DECIDED: cursor.upto, _SEEN: newest, _FEEDBACK: max(commented, settled_feedback)}
            # A power cut must not lose the rows that these positions count and keep the positions.
            self.pending.sync()
            if self.interactions.append(rows, positions) is not None:
                self.interactions.sync()
                total += rows.num_rows
                refused += pairing.not_paired + not_admitted + Counter({NotAdmitted.UNKNOWN_TURN.value: unknown})

    def _comments(self, after: int, upto: int) -> tuple[list[AdmissionTask], int]:
        """Comments in the batches of feedback after `after`, and the number of those on turns that are not stored."""
        feedback = feedback_from_arrow(self.feedback.read(after=after, upto=upto))
        comments = [each for each in feedback if each.comment.strip()]
        ids = pa.array({each.turn_id for each in comments}, pa.string())
        of_ids = ds.field("turn_id").isin(ids)
        rows = self.turns.read(["turn_id", "batch"], where=of_ids).to_pylist() if len(ids) else []
        batches = {row["turn_id"]: row["batch"] for row in rows}
        known = [each for each in comments if each.turn_id in batches]
        tasks = [
            AdmissionTask(answer=each.turn_id, answer_batch=batches[each.turn_id], feedback=each) for each in known
        ]
        return tasks, len(comments) - len(known)

    def _admit(self, tasks: Sequence[AdmissionTask]) -> tuple[pa.Table, Counter[str]]:
        """The admitted interactions, oldest follow-up first, and the refusals by reason."""
        if not tasks:
            return INTERACTION.empty_table(), Counter()
        now_s = time.time()
        rows = admit_tasks(tasks, self.turns, curate=self._curate, capture=self._capture, now_s=now_s)
        refused = Counter(reason for reason in rows[REASON].to_pylist() if reason is not None)
        admitted = rows.filter(ds.field(REASON).is_null()).select(INTERACTION.names)
        over = self._over_limits(admitted, now_s)
        is_over = pc.is_in(admitted["interaction_id"], pa.array(over, pa.string()))
        within = admitted.filter(pc.invert(is_over))
        ordered = within.sort_by([("follow_up_at_s", "ascending"), ("interaction_id", "ascending")])
        return ordered, refused + Counter(reason.value for reason in over.values())

    def _over_limits(self, new: pa.Table, now_s: float) -> dict[str, NotAdmitted]:
        if not new.num_rows:
            return {}
        oldest_s = pc.min(new["follow_up_at_s"]).as_py()
        recent = ds.field("follow_up_at_s") > oldest_s - HOUR_S
        before = self.interactions.read([*_LIMIT_COLUMNS], where=recent).to_pylist()
        young = ds.field("follow_up_at_s") > now_s - self._curate.max_age_days * _DAY_S
        same = ds.field("content").isin(new["content"].combine_chunks())
        return within_limits(
            [AdmissionCounts(**row) for row in new.select(_LIMIT_COLUMNS).to_pylist()],
            before=[AdmissionCounts(**row) for row in before],
            copies=Counter(self.interactions.read(["content"], where=young & same)["content"].to_pylist()),
            config=self._curate,
        )


def _task(pair: Pair) -> AdmissionTask:
    return AdmissionTask(
        answer=pair.answer.turn_id,
        answer_batch=pair.answer.turn_batch,
        follow_up=pair.follow_up.turn_id,
        follow_up_batch=pair.follow_up.turn_batch,
    )
