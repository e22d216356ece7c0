"""One block of the stage: paired turns and comments are read, checked and admitted. Runs in a Ray task.

A block carries ids and the data files that hold the turns, never the turns themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.dataset as ds
from sdpo_ray.curate.comments import reaction_in_comment

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission import AdmissionRules, NotAdmitted, admit, reaction_in_turn
from sdpo_ray.curate.gc_pause import collector_paused
from sdpo_ray.curate.language import Detect, detector
from sdpo_ray.curate.pairing import follows
from sdpo_ray.records import Feedback, Interaction, Turn
from sdpo_ray.redaction import Redactor
from sdpo_ray.tables.arrow_schemas import (
    FEEDBACK,
    INTERACTION,
    TURN,
    feedback_from_arrow,
    interactions_to_arrow,
    turns_from_arrow,
)
from sdpo_ray.tables.delta_table import read_files

REFUSAL = "refusal"
WORK = pa.schema(
    [
        pa.field("answer", pa.string()),
        pa.field("follow_up", pa.string()),
        pa.field("feedback", pa.struct(list(FEEDBACK))),
        pa.field("files", pa.list_(pa.string())),
    ]
)
"""One row an answer and what was said of it: a turn's id, or the feedback itself; the files are the block's."""
OUTCOME = INTERACTION.append(pa.field(REFUSAL, pa.string()))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionTask:
    """An answer and what was said of it. Made by `curate.pipeline`; read by `admit_block`."""

    answer: str
    answer_batch: int
    """The batch of `turns` that holds it."""
    follow_up: str = ""
    follow_up_batch: int = 0
    feedback: Feedback | None = None


@collector_paused()
def admit_block(work: pa.Table, *, curate: CurateConfig, capture: CaptureConfig, now_s: float) -> pa.Table:
    """Rows of `OUTCOME`, one a row of `WORK`: an interaction, or a refusal and nothing else."""
    rows = work.to_pylist()
    ids = pa.array({name for row in rows for name in (row["answer"], row["follow_up"]) if name}, pa.string())
    files = sorted({name for row in rows for name in row["files"]})
    stored = turns_from_arrow(read_files(files, TURN, TURN.names, ds.field("turn_id").isin(ids)))
    turns = {turn.turn_id: turn for turn in stored}
    redactor = _redactor(capture.redact, capture.phone_regions)
    # What was said early stands in every later turn of its conversation.
    leaks = cache(lambda text: bool(redactor.redact(text)[1]))
    rules = AdmissionRules(config=curate, now_s=now_s, leaks=leaks, detect=_detect)
    comments = iter(feedback_from_arrow(pa.Table.from_pylist(_given(rows), schema=FEEDBACK)))
    outcomes = [_outcome(row, turns, next(comments) if row["feedback"] else None, rules) for row in rows]
    kept = interactions_to_arrow([each for each in outcomes if isinstance(each, Interaction)])
    kept = kept.append_column(REFUSAL, pa.nulls(kept.num_rows, pa.string()))
    refused = [{REFUSAL: each.value} for each in outcomes if isinstance(each, NotAdmitted)]
    return pa.concat_tables([kept, pa.Table.from_pylist(refused, schema=OUTCOME)])


def _outcome(
    row: Mapping[str, str], turns: Mapping[str, Turn], feedback: Feedback | None, rules: AdmissionRules
) -> Interaction | NotAdmitted:
    answer = turns.get(row["answer"])
    if answer is not None and feedback is not None:
        said = reaction_in_comment(answer, feedback)
        return said if isinstance(said, NotAdmitted) else admit(answer, said, rules)
    follow_up = turns.get(row["follow_up"])
    if answer is None or follow_up is None:
        # Erased after it was paired.
        return NotAdmitted.UNKNOWN_TURN
    return (
        admit(answer, reaction_in_turn(answer, follow_up), rules)
        if follows(follow_up, answer)
        else NotAdmitted.NOT_A_FOLLOW_UP
    )


def _given(rows: Sequence[Mapping[str, object]]) -> list[object]:
    return [row["feedback"] for row in rows if row["feedback"]]


@cache
def _redactor(kinds: tuple[str, ...], phone_regions: tuple[str, ...]) -> Redactor:
    """Without Presidio, which the recorder alone asks: it is slow, and its findings depend on its version."""
    return Redactor(kinds, phone_regions=phone_regions)


@cache
def _detector() -> Detect:
    return detector()


def _detect(text: str) -> str | None:
    return _detector()(text)
