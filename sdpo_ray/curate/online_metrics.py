"""Online metrics of policies: users' reactions to their answers, and the answers' durations.

A reaction is a follow-up or a comment, which `curate.dissatisfaction_rules` classifies, a thumb, or an edited answer.
Only the first reaction of each conversation to each policy counts, since reactions of one conversation are not
independent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.curate.admission.reactions import reaction_in_comment
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.dissatisfaction_rules import is_dissatisfied
from sdpo_ray.records import Feedback, FinishReason, Thumb, Turn
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, interactions_from_arrow, turns_from_arrow
from sdpo_ray.tables.delta_table import Table

_WITHOUT_TEXT = ("started_at_s", "finished_at_s", "response_ids", "version_spans", "finish_reason", "adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedReaction:
    """The first reaction of a conversation to a policy. Made by `OnlineMetrics`; read by `pipeline.canary_runner`."""

    policy_version: int
    """Of the answer."""
    complaint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAnswer:
    """An answer that was not aborted. Made by `OnlineMetrics`; read by `pipeline.canary_runner`."""

    policy_version: int
    seconds: float
    """From the start of the request to the end of the answer."""
    tokens: int
    """Of the answer."""


class OnlineMetrics:
    """Reads rows that were curated since its last call; the first call reads those of `since_s` (Unix time) and later.

    Answers of a personal policy, or of several policy versions, are left out: they say nothing about one policy.
    """

    def __init__(self, turns: Table, feedback: Table, interactions: Table, *, since_s: float) -> None:
        self._turns = turns
        self._feedback = feedback
        self._interactions = interactions
        self._since_s = since_s
        self._read_upto = {"turns": 0, "feedback": 0, "interactions": 0}
        self._conversations: set[tuple[int, str]] = set()
        self._waiting: list[Feedback] = []
        """Feedback on turns that are not stored yet."""

    def finished(self) -> list[FinishedAnswer]:
        """New answers, in the order in which they were finished."""
        rows = self._new_rows(self._turns, "finished_at_s", _WITHOUT_TEXT).to_pylist()
        return [
            FinishedAnswer(policy_version=version, seconds=row["finished_at_s"] - row["started_at_s"], tokens=tokens)
            for row in sorted(rows, key=lambda row: row["finished_at_s"])
            if (version := self._version(row["version_spans"], row["adapter"], row["started_at_s"])) is not None
            and (tokens := len(row["response_ids"]))
            and row["finish_reason"] != FinishReason.ABORT
        ]

    def reactions(self) -> list[ObservedReaction]:
        """New reactions: thumbs and edited answers first, then follow-ups and comments, each in the order of time."""
        reactions = [*self._thumbs(), *self._follow_ups()]
        return [each for turn, complaint in reactions if (each := self._first(turn, complaint)) is not None]

    def _thumbs(self) -> list[tuple[Turn, bool]]:
        """Turns with a thumb or an edited answer, and whether that is a complaint."""
        new = feedback_from_arrow(self._new_rows(self._feedback, "given_at_s"))
        without_words = [each for each in new if each.thumb is not None or each.edited.strip()]
        feedback = [*self._waiting, *sorted(without_words, key=lambda each: each.given_at_s)]
        turns = {turn.turn_id: turn for turn in self._turns_of({each.turn_id for each in feedback})}
        self._waiting = [each for each in feedback if each.turn_id not in turns]
        return [
            (turn, each.thumb is Thumb.DOWN or bool(each.edited.strip()))
            for each in feedback
            if (turn := turns.get(each.turn_id)) is not None
            and not isinstance(reaction_in_comment(turn, each), NotAdmitted)
        ]

    def _follow_ups(self) -> list[tuple[Turn, bool]]:
        """Turns with a follow-up or a comment, and whether that is a complaint."""
        rows = interactions_from_arrow(self._new_rows(self._interactions, "follow_up_at_s"))
        ordered = sorted(rows, key=lambda each: (each.follow_up_at_s, each.interaction_id))
        return [(each.turn, is_dissatisfied(each.follow_up)) for each in ordered]

    def _first(self, turn: Turn, complaint: bool) -> ObservedReaction | None:
        spans = [{"policy_version": span.policy_version} for span in turn.version_spans]
        version = self._version(spans, turn.adapter, turn.started_at_s)
        if version is None or (version, turn.keys.conversation) in self._conversations:
            return None
        self._conversations.add((version, turn.keys.conversation))
        return ObservedReaction(policy_version=version, complaint=complaint)

    def _version(self, spans: Iterable[Mapping[str, int]], adapter: str, started_at_s: float) -> int | None:
        """Version of the policy that made the answer; None for an answer that is left out."""
        versions = {span["policy_version"] for span in spans}
        return versions.pop() if len(versions) == 1 and not adapter and started_at_s >= self._since_s else None

    def _new_rows(self, table: Table, time_column: str, columns: Sequence[str] | None = None) -> pa.Table:
        table.refresh()
        after, upto = self._read_upto[table.name], table.batch
        self._read_upto[table.name] = upto
        return table.read(columns, where=ds.field(time_column) >= self._since_s, after=after, upto=upto)

    def _turns_of(self, ids: set[str]) -> list[Turn]:
        if not ids:
            return []
        self._turns.refresh()
        return turns_from_arrow(self._turns.read(where=ds.field("turn_id").isin(pa.array(ids, pa.string()))))
