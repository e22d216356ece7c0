"""The incremental stage: what is new in the event log becomes interactions.

    log --ship--> turns --index--> pending --pair, admit--> interactions        (feedback joins at admit)

Each arrow is one commit that carries how far it read, so a job killed between any two goes on without repeating
or skipping. Pairing looks at light columns; Ray Data reads the paired turns, checks and admits them in blocks. A round
takes at most `curate.max_batch_turns` turns, whatever has piled up.
One curator works on a root at a time; a second one is harmless, but loses its commits to the first.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission import NotAdmitted
from sdpo_ray.curate.admission_limits import HOUR_S, AdmissionCounts, within_limits
from sdpo_ray.curate.admission_task import REFUSAL, WORK, AdmissionTask, admit_block
from sdpo_ray.curate.ingest import ingest, positions
from sdpo_ray.curate.pairing import Pair, pair
from sdpo_ray.curate.pairing_index import index, pairing_cursor, related
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import INTERACTION, feedback_from_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.tombstones import Tombstones

_DECIDED, _SEEN, _FEEDBACK = "pending.decided", "pending.seen", "feedback.decided"
"""Positions in `interactions`: `sessionize.Horizon`, and the batch of `feedback` whose comments are decided."""
_ADMITTED = list(AdmissionCounts.__dataclass_fields__)
_WORK_A_BLOCK = 1024
_CPUS_A_BLOCK = 0.25
_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationProgress:
    """What one `Curator.advance` did. Made by it; read by `jobs`."""

    turns_shipped: int
    turns_total: int
    feedback_shipped: int
    interactions_admitted: int
    interactions_total: int
    undecided: int
    """Turns whose own follow-up decision waits for the next advance."""
    backlog_bytes: int
    """What of the event log was not read yet when this advance began."""
    refused: Counter[str]
    """Turns, pairs and comments that came to nothing in this advance, by reason."""


class Curator:
    """The stage over one run's tables. Needs Ray only when there is something to admit."""

    def __init__(self, layout: Layout, log: EventLog, *, curate: CurateConfig, capture: CaptureConfig) -> None:
        self._log = log
        self._curate = curate
        self._capture = capture
        self._erasures = Tombstones(layout)
        self.turns = Table.turns(layout)
        self.feedback = Table.feedback(layout)
        self.pending = Table.pending(layout)
        self.interactions = Table.interactions(layout)

    def advance(self, on_turns: Callable[[int], None] = lambda num_turns: None) -> CurationProgress:
        """Ship what is new, and decide what an earlier advance shipped. Raises CorruptLog, LostEvents."""
        index(self.turns, self.pending, max_turns=self._curate.max_batch_turns)
        self.feedback.refresh()
        settled, settled_feedback = self.pending.batch, self.feedback.batch
        backlog_bytes = self._log.backlog_bytes(positions(self._log, self.turns))
        shipped = ingest(
            self._log,
            self.turns,
            self.feedback,
            max_turns=self._curate.max_batch_turns,
            max_bytes=self._curate.max_batch_mib << 20,
            erased=self._erasures.covers,
            on_turns=on_turns,
        )
        index(self.turns, self.pending, max_turns=self._curate.max_batch_turns)
        admitted, refused = self._decide(settled, settled_feedback)
        return CurationProgress(
            turns_shipped=shipped.num_turns,
            turns_total=self.turns.num_rows,
            feedback_shipped=shipped.num_feedback,
            interactions_admitted=admitted,
            interactions_total=self.interactions.num_rows,
            undecided=self.pending.read(["turn_id"], after=self.interactions.position(_DECIDED) or 0).num_rows,
            backlog_bytes=backlog_bytes,
            refused=shipped.refused + refused,
        )

    def maintain(self) -> list[str]:
        """Compact the tables that are due, and forget answers that waited too long; the names of the tables."""
        tables, every = (self.turns, self.feedback, self.pending, self.interactions), self._curate.compact_every
        return [table.name for table in tables if table.is_due(every) and self._is_kept(table)]

    def _is_kept(self, table: Table) -> bool:
        return table.maintain(
            every=self._curate.compact_every,
            keep_files_h=self._curate.keep_files_h,
            expire_before_s=self._waited_from_s() if table is self.pending else None,
        )

    def _waited_from_s(self) -> float:
        """Turns that were finished before this time wait no longer; nobody who is undecided is among them."""
        before_s = time.time() - self._curate.follow_up_days * _DAY_S
        undecided = self.pending.read(["finished_at_s"], after=self.interactions.position(_DECIDED) or 0)
        oldest_s = pc.min(undecided["finished_at_s"]).as_py()
        return before_s if oldest_s is None else min(before_s, oldest_s)

    def _decide(self, settled: int, settled_feedback: int) -> tuple[int, Counter[str]]:
        """Rounds up to what was settled before the last shipping; interactions admitted, and refusals by reason."""
        total, refused = 0, Counter[str]()
        # What others bring meanwhile is left to the next advance: they may be faster than we are.
        shipped = self.pending.batch
        while True:
            self.interactions.refresh()
            self.pending.refresh()
            decided, seen, heard = (self.interactions.position(name) or 0 for name in (_DECIDED, _SEEN, _FEEDBACK))
            newest = self.pending.batch
            if decided >= settled and seen >= shipped and heard >= settled_feedback:
                return total, refused
            now = pairing_cursor(
                self.pending, decided=decided, seen=seen, settled=settled, max_turns=self._curate.max_batch_turns
            )
            pairing = pair(related(self.pending, now, newest=newest), now)
            comments, unknown = self._comments(heard, settled_feedback)
            rows, not_admitted = self._admit([*map(_work, pairing.pairs), *comments])
            positions = {_DECIDED: now.upto, _SEEN: newest, _FEEDBACK: max(heard, settled_feedback)}
            # What these positions count must not be lost in a power cut that leaves them.
            self.pending.sync()
            if self.interactions.append(rows, positions) is not None:
                self.interactions.sync()
                total += rows.num_rows
                refused += pairing.unpaired + not_admitted + Counter({NotAdmitted.UNKNOWN_TURN.value: unknown})

    def _comments(self, heard: int, upto: int) -> tuple[list[AdmissionTask], int]:
        """Comments of feedback that came since, and how many are on no turn of ours."""
        given = [
            each for each in feedback_from_arrow(self.feedback.read(after=heard, upto=upto)) if each.comment.strip()
        ]
        ids = pa.array({each.turn_id for each in given}, pa.string())
        of_ids = ds.field("turn_id").isin(ids)
        rows = self.turns.read(["turn_id", "batch"], where=of_ids).to_pylist() if len(ids) else []
        batches = {row["turn_id"]: row["batch"] for row in rows}
        known = [each for each in given if each.turn_id in batches]
        work = [AdmissionTask(answer=each.turn_id, answer_batch=batches[each.turn_id], feedback=each) for each in known]
        return work, len(given) - len(known)

    def _admit(self, work: Sequence[AdmissionTask]) -> tuple[pa.Table, Counter[str]]:
        """The interactions that `work` gives, oldest follow-up first, and the refusals."""
        if not work:
            return INTERACTION.empty_table(), Counter()
        import ray
        import ray.data

        _quieten_ray_data()
        now_s = time.time()
        # Ray keeps as many idle workers as there are CPUs: more at once would start anew each time, in seconds.
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        blocks = list(self._blocks(work, workers))
        outcomes = ray.data.from_arrow(blocks).map_batches(
            admit_block,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_CPUS_A_BLOCK,
            compute=ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
            fn_kwargs={"curate": self._curate, "capture": self._capture, "now_s": now_s},
        )
        rows = pa.concat_tables(ray.get(outcomes.to_arrow_refs()))
        refused = Counter(reason for reason in rows[REFUSAL].to_pylist() if reason is not None)
        admitted = rows.filter(ds.field(REFUSAL).is_null()).select(INTERACTION.names)
        over = self._over_limits(admitted, now_s)
        within = admitted.filter(pc.invert(pc.is_in(admitted["interaction_id"], pa.array(over, pa.string()))))
        ordered = within.sort_by([("follow_up_at_s", "ascending"), ("interaction_id", "ascending")])
        return ordered, refused + Counter(reason.value for reason in over.values())

    def _blocks(self, work: Sequence[AdmissionTask], workers: int) -> Iterable[pa.Table]:
        """Work on neighbouring answers stands together, in few blocks: each decodes the files of its answers whole."""
        ordered = sorted(work, key=lambda each: (each.answer_batch, each.follow_up_batch, each.answer))
        size = max(_WORK_A_BLOCK, math.ceil(len(ordered) / workers))
        for start in range(0, len(ordered), size):
            block = ordered[start : start + size]
            batches = {batch for each in block for batch in (each.answer_batch, each.follow_up_batch) if batch}
            yield _block(block, self.turns.files(batches))

    def _over_limits(self, new: pa.Table, now_s: float) -> dict[str, NotAdmitted]:
        if not new.num_rows:
            return {}
        oldest_s = pc.min(new["follow_up_at_s"]).as_py()
        recent = ds.field("follow_up_at_s") > oldest_s - HOUR_S
        before = self.interactions.read([*_ADMITTED], where=recent).to_pylist()
        young = ds.field("follow_up_at_s") > now_s - self._curate.max_age_days * _DAY_S
        same = ds.field("content").isin(new["content"].combine_chunks())
        return within_limits(
            [AdmissionCounts(**row) for row in new.select(_ADMITTED).to_pylist()],
            before=[AdmissionCounts(**row) for row in before],
            copies=Counter(self.interactions.read(["content"], where=young & same)["content"].to_pylist()),
            config=self._curate,
        )


def _work(found: Pair) -> AdmissionTask:
    return AdmissionTask(
        answer=found.answer.turn_id,
        answer_batch=found.answer.turn_batch,
        follow_up=found.follow_up.turn_id,
        follow_up_batch=found.follow_up.turn_batch,
    )


def _block(work: Sequence[AdmissionTask], files: Sequence[str]) -> pa.Table:
    rows = [
        {
            "answer": each.answer,
            "follow_up": each.follow_up,
            "feedback": None if each.feedback is None else msgspec.to_builtins(each.feedback),
            # Once a block is enough.
            "files": files if number == 0 else [],
        }
        for number, each in enumerate(work)
    ]
    return pa.Table.from_pylist(rows, schema=WORK)


def _quieten_ray_data() -> None:
    """A micro-batch every few seconds would fill the screen with plans and progress bars."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that the progress bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
