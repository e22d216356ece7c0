"""The ids of one user's rows in the tables: what an erasure removes, and what lineage starts from.

Rows of a named user carry a pseudonym. An anonymous user names turns; the rest of their conversation is found by the
keys of pairing, except for turns that may be another user's with the same text (`privacy.conversation_trace`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.conversation_trace import trace_conversation
from sdpo_ray.tables.delta_table import Table


@dataclass(frozen=True, slots=True)
class UserTables:
    """The tables of one run that hold users' text."""

    turns: Table
    feedback: Table
    interactions: Table
    pending: Table

    @classmethod
    def of(cls, layout: Layout) -> "UserTables":
        return cls(
            turns=Table.turns(layout),
            feedback=Table.feedback(layout),
            interactions=Table.interactions(layout),
            pending=Table.pending(layout),
        )

    def refresh(self) -> None:
        for table in (self.turns, self.feedback, self.interactions, self.pending):
            table.refresh()

    def purge(self) -> None:
        """Remove the files of deleted rows from disk."""
        for table in (self.turns, self.feedback, self.interactions, self.pending):
            table.purge()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFootprint:
    """Made by `footprint_of`; read by `privacy.erasure`, `privacy.lineage` and `jobs.lineage`."""

    turn_ids: frozenset[str]
    """Includes the turns that were named and are in no table."""
    feedback_ids: frozenset[str]
    interaction_ids: frozenset[str]
    conversations: frozenset[str]
    """Digests of the conversation ids of the turns that were named."""
    ambiguous_turns: int
    """Turns of a conversation that was named, or of another one with the same text."""

    @property
    def source_ids(self) -> frozenset[str]:
        """Ids of the turns and feedback that an interaction can be made from."""
        return self.turn_ids | self.feedback_ids


def footprint_of(
    tables: UserTables, users: Collection[tuple[str, str]], turn_ids: Collection[str] = (), also: Collection[str] = ()
) -> UserFootprint:
    """Rows of `users` (tenant and pseudonym), of the conversations of `turn_ids`, and of the turns `also`."""
    turns = {*turn_ids, *also, *_ids(tables.turns, "turn_id", _is_one_of(users))}
    conversations, ambiguous = set[str](), 0
    for turn_id in turn_ids:
        conversation = trace_conversation(tables.turns, turn_id)
        turns |= conversation.turn_ids
        conversations |= conversation.conversations
        ambiguous += conversation.ambiguous_turns
    feedback = {
        *_ids(tables.feedback, "feedback_id", _is_one_of(users)),
        *_matching(tables.feedback, "feedback_id", ds.field("turn_id"), turns),
    }
    sources = turns | feedback
    interactions = {
        *_ids(tables.interactions, "interaction_id", _is_one_of(users)),
        *_matching(tables.interactions, "interaction_id", ds.field("interaction_id"), sources),
        *_matching(tables.interactions, "interaction_id", ds.field("follow_up_turn_id"), sources),
        *_matching(tables.interactions, "interaction_id", ds.field("turn", "turn_id"), turns),
    }
    return UserFootprint(
        turn_ids=frozenset(turns),
        feedback_ids=frozenset(feedback),
        interaction_ids=frozenset(interactions),
        conversations=frozenset(conversations),
        ambiguous_turns=ambiguous,
    )


def count(tables: UserTables, footprint: UserFootprint) -> dict[str, int]:
    """The number of rows that `remove` would remove, by table."""
    return {
        table.name: len(_matching(table, name, ds.field(name), ids))
        for table, name, ids in (
            (tables.interactions, "interaction_id", footprint.interaction_ids),
            (tables.feedback, "feedback_id", footprint.feedback_ids),
            (tables.pending, "turn_id", footprint.turn_ids),
            (tables.turns, "turn_id", footprint.turn_ids),
        )
    }


def remove(tables: UserTables, footprint: UserFootprint) -> dict[str, int]:
    """Delete the rows; returns their number by table. Turns go last: an interrupted erasure finds the rest by them."""
    return {
        tables.interactions.name: tables.interactions.delete(footprint.interaction_ids),
        tables.feedback.name: tables.feedback.delete(footprint.feedback_ids),
        tables.pending.name: tables.pending.delete(footprint.turn_ids),
        tables.turns.name: tables.turns.delete(footprint.turn_ids),
    }


def _is_one_of(users: Iterable[tuple[str, str]]) -> ds.Expression | None:
    """A filter; None if there is no named user."""
    by_tenant: dict[str, list[str]] = {}
    for tenant, user in users:
        if user:
            by_tenant.setdefault(tenant, []).append(user)
    found: ds.Expression | None = None
    for tenant, names in by_tenant.items():
        one = (ds.field("tenant") == tenant) & ds.field("user").isin(pa.array(names, pa.string()))
        found = one if found is None else found | one
    return found


def _ids(table: Table, name: str, where: ds.Expression | None) -> list[str]:
    return [] if where is None else list(table.read([name], where=where)[name].to_pylist())


def _matching(table: Table, name: str, column: ds.Expression, values: Collection[str]) -> list[str]:
    """Ids of the rows whose `column` is one of the values."""
    return _ids(table, name, column.isin(pa.array(values, pa.string()))) if values else []
