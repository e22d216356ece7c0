"""Admission of one block: read paired turns and comments, check and admit them. Runs in a Ray task.

A block carries the ids of turns and the data files that hold them, not the turns themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission.reactions import reaction_in_comment, reaction_in_turn
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.admission.rules import AdmissionRules, admit
from sdpo_ray.curate.gc_pause import gc_paused
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

REASON = "not_admitted"
TASKS = pa.schema(
    [
        pa.field("answer", pa.string()),
        pa.field("follow_up", pa.string()),
        pa.field("feedback", pa.struct(list(FEEDBACK))),
        pa.field("files", pa.list_(pa.string())),
    ]
)
"""Input of `admit_block`, one row an `AdmissionTask`: the answer's turn id, and the follow-up's or the feedback itself.
`files` are the data files of the whole block; one row of it names them."""
OUTCOME = INTERACTION.append(pa.field(REASON, pa.string()))
"""Output of `admit_block`: an interaction, or nulls and the `NotAdmitted` reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionTask:
    """An answer and a reaction to it. Made by `curate.pipeline`; read by `admit_block` as a row of `TASKS`."""

    answer: str
    """Turn id."""
    answer_batch: int
    """The batch of `turns` that holds the answer."""
    follow_up: str = ""
    """Turn id; empty for a comment."""
    follow_up_batch: int = 0
    feedback: Feedback | None = None


@gc_paused()
def admit_block(tasks: pa.Table, *, curate: CurateConfig, capture: CaptureConfig, now_s: float) -> pa.Table:
    """Rows of `OUTCOME`, one for each row of `TASKS`, in no particular order. `now_s` is Unix time."""
    rows = tasks.to_pylist()
    ids = pa.array({name for row in rows for name in (row["answer"], row["follow_up"]) if name}, pa.string())
    files = sorted({name for row in rows for name in row["files"]})
    stored = turns_from_arrow(read_files(files, TURN, TURN.names, ds.field("turn_id").isin(ids)))
    turns = {turn.turn_id: turn for turn in stored}
    redactor = _redactor(capture.redact, capture.phone_regions)
    # Cached: every turn repeats the earlier messages of its conversation.
    leaks = cache(lambda text: bool(redactor.redact(text)[1]))
    rules = AdmissionRules(config=curate, now_s=now_s, leaks=leaks, detect=_detect)
    comments = iter(feedback_from_arrow(pa.Table.from_pylist(_feedback_rows(rows), schema=FEEDBACK)))
    outcomes = [_outcome(row, turns, next(comments) if row["feedback"] else None, rules) for row in rows]
    admitted = interactions_to_arrow([each for each in outcomes if isinstance(each, Interaction)])
    admitted = admitted.append_column(REASON, pa.nulls(admitted.num_rows, pa.string()))
    reasons = [{REASON: each.value} for each in outcomes if isinstance(each, NotAdmitted)]
    return pa.concat_tables([admitted, pa.Table.from_pylist(reasons, schema=OUTCOME)])


def _outcome(
    row: Mapping[str, str], turns: Mapping[str, Turn], feedback: Feedback | None, rules: AdmissionRules
) -> Interaction | NotAdmitted:
    answer = turns.get(row["answer"])
    if answer is not None and feedback is not None:
        reaction = reaction_in_comment(answer, feedback)
        return reaction if isinstance(reaction, NotAdmitted) else admit(answer, reaction, rules)
    follow_up = turns.get(row["follow_up"])
    if answer is None or follow_up is None:
        # Erased after it was paired.
        return NotAdmitted.UNKNOWN_TURN
    return (
        admit(answer, reaction_in_turn(answer, follow_up), rules)
        if follows(follow_up, answer)
        else NotAdmitted.NOT_A_FOLLOW_UP
    )


def _feedback_rows(rows: Sequence[Mapping[str, object]]) -> list[object]:
    return [row["feedback"] for row in rows if row["feedback"]]


@cache
def _redactor(kinds: tuple[str, ...], phone_regions: tuple[str, ...]) -> Redactor:
    """Without Presidio, which only the recorder uses: it is slow, and its findings depend on its version."""
    return Redactor(kinds, phone_regions=phone_regions)


@cache
def _detector() -> Detect:
    return detector()


def _detect(text: str) -> str | None:
    return _detector()(text)
