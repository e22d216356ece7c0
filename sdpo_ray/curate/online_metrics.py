"""What came of the answers that were asked for since some moment: how users reacted to them, and what they took.

A reaction is a follow-up or a comment, whose words `curate.dissatisfaction_rules` reads, or a thumb or an edited answer. The first
of each conversation with each policy counts, since those of one conversation are not independent of each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.curate.admission import NotAdmitted
from sdpo_ray.curate.comments import reaction_in_comment
from sdpo_ray.curate.dissatisfaction_rules import is_dissatisfied
from sdpo_ray.records import Feedback, FinishReason, Thumb, Turn
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, interactions_from_arrow, turns_from_arrow
from sdpo_ray.tables.delta_table import Table

_WITHOUT_WORDS = ("started_at_s", "finished_at_s", "response_ids", "version_spans", "finish_reason", "adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedReaction:
    """Made by `OnlineMetrics`; read by `sdpo_ray.pipeline.canary_runner`."""

    policy_version: int
    """Of the answer."""
    complaint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAnswer:
    """An answer that was given to its end. Made by `OnlineMetrics`; read by `sdpo_ray.pipeline.canary_runner`."""

    policy_version: int
    seconds: float
    tokens: int


class OnlineMetrics:
    """Looks at what curation brought since it looked last; its first look is at everything since `since_s`, Unix time.

    What an answer of a personal policy, or of several versions, led to says nothing of one policy, and is left out.
    """

    def __init__(self, turns: Table, feedback: Table, interactions: Table, *, since_s: float) -> None:
        self._turns = turns
        self._feedback = feedback
        self._interactions = interactions
        self._since_s = since_s
        self._seen = {"turns": 0, "feedback": 0, "interactions": 0}
        self._conversations: set[tuple[int, str]] = set()
        self._waiting: list[Feedback] = []
        """On turns that are not stored yet."""

    def given(self) -> list[FinishedAnswer]:
        """Answers that are new, in the order in which they were finished."""
        rows = self._new(self._turns, "finished_at_s", _WITHOUT_WORDS).to_pylist()
        return [
            FinishedAnswer(policy_version=version, seconds=row["finished_at_s"] - row["started_at_s"], tokens=tokens)
            for row in sorted(rows, key=lambda row: row["finished_at_s"])
            if (version := self._version(row["version_spans"], row["adapter"], row["started_at_s"])) is not None
            and (tokens := len(row["response_ids"]))
            and row["finish_reason"] != FinishReason.ABORT
        ]

    def reactions(self) -> list[ObservedReaction]:
        """Reactions that are new: what was said without words first, then the others, each in their order."""
        found = [*self._thumbs(), *self._follow_ups()]
        return [each for turn, complaint in found if (each := self._first(turn, complaint)) is not None]

    def _thumbs(self) -> list[tuple[Turn, bool]]:
        new = feedback_from_arrow(self._new(self._feedback, "given_at_s"))
        said = [each for each in new if each.thumb is not None or each.edited.strip()]
        said = [*self._waiting, *sorted(said, key=lambda each: each.given_at_s)]
        turns = {turn.turn_id: turn for turn in self._turns_of({each.turn_id for each in said})}
        self._waiting = [each for each in said if each.turn_id not in turns]
        return [
            (turn, each.thumb is Thumb.DOWN or bool(each.edited.strip()))
            for each in said
            if (turn := turns.get(each.turn_id)) is not None
            and not isinstance(reaction_in_comment(turn, each), NotAdmitted)
        ]

    def _follow_ups(self) -> list[tuple[Turn, bool]]:
        rows = interactions_from_arrow(self._new(self._interactions, "follow_up_at_s"))
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
        """The one policy whose answer it was; None for an answer that is left out."""
        versions = {span["policy_version"] for span in spans}
        return versions.pop() if len(versions) == 1 and not adapter and started_at_s >= self._since_s else None

    def _new(self, table: Table, time_column: str, columns: Sequence[str] | None = None) -> pa.Table:
        table.refresh()
        after, upto = self._seen[table.name], table.batch
        self._seen[table.name] = upto
        return table.read(columns, where=ds.field(time_column) >= self._since_s, after=after, upto=upto)

    def _turns_of(self, ids: set[str]) -> list[Turn]:
        if not ids:
            return []
        self._turns.refresh()
        return turns_from_arrow(self._turns.read(where=ds.field("turn_id").isin(pa.array(ids, pa.string()))))
