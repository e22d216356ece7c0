"""What one user left in the tables, by ids: what an erasure removes, and where lineage begins.

A user is known by pseudonyms. Who is anonymous can point at turns: then the conversation is followed from there by the
keys of pairing, as far as it is certain; what others may have said in the same words is theirs.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.conversation_trace import conversation_of
from sdpo_ray.tables.delta_table import Table


@dataclass(frozen=True, slots=True)
class UserTables:
    """The tables of one run that hold what users said."""

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
        """Remove from disk what was deleted."""
        for table in (self.turns, self.feedback, self.interactions, self.pending):
            table.purge()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFootprint:
    """Made by `footprint_of`; read by `jobs`."""

    turn_ids: frozenset[str]
    """Also those that were asked for and are in no table."""
    feedback_ids: frozenset[str]
    interaction_ids: frozenset[str]
    conversations: frozenset[str]
    """Digests of conversations that had an id, of which a turn was pointed at."""
    alike: int
    """Turns that may belong to a conversation which was pointed at, or to somebody who used the same words."""

    @property
    def said(self) -> frozenset[str]:
        """Ids of everything that an interaction can come from."""
        return self.turn_ids | self.feedback_ids


def footprint_of(
    tables: UserTables, users: Collection[tuple[str, str]], turn_ids: Collection[str] = (), also: Collection[str] = ()
) -> UserFootprint:
    """Of users, each a tenant and a pseudonym, of the conversations that `turn_ids` are of, and of the turns `also`."""
    turns = {*turn_ids, *also, *_ids(tables.turns, "turn_id", _is_one_of(users))}
    conversations, alike = set[str](), 0
    for turn_id in turn_ids:
        conversation = conversation_of(tables.turns, turn_id)
        turns |= conversation.turn_ids
        conversations |= conversation.keys
        alike += conversation.alike
    feedback = {
        *_ids(tables.feedback, "feedback_id", _is_one_of(users)),
        *_matching(tables.feedback, "feedback_id", ds.field("turn_id"), turns),
    }
    said = turns | feedback
    interactions = {
        *_ids(tables.interactions, "interaction_id", _is_one_of(users)),
        *_matching(tables.interactions, "interaction_id", ds.field("interaction_id"), said),
        *_matching(tables.interactions, "interaction_id", ds.field("follow_up_turn_id"), said),
        *_matching(tables.interactions, "interaction_id", ds.field("turn", "turn_id"), turns),
    }
    return UserFootprint(
        turn_ids=frozenset(turns),
        feedback_ids=frozenset(feedback),
        interaction_ids=frozenset(interactions),
        conversations=frozenset(conversations),
        alike=alike,
    )


def count(tables: UserTables, traces: UserFootprint) -> dict[str, int]:
    """Rows that `remove` would remove, by table."""
    return {
        table.name: len(_matching(table, name, ds.field(name), ids))
        for table, name, ids in (
            (tables.interactions, "interaction_id", traces.interaction_ids),
            (tables.feedback, "feedback_id", traces.feedback_ids),
            (tables.pending, "turn_id", traces.turn_ids),
            (tables.turns, "turn_id", traces.turn_ids),
        )
    }


def remove(tables: UserTables, traces: UserFootprint) -> dict[str, int]:
    """Rows removed by table. Turns go last: whoever is killed before that finds everything again by them."""
    return {
        tables.interactions.name: tables.interactions.delete(traces.interaction_ids),
        tables.feedback.name: tables.feedback.delete(traces.feedback_ids),
        tables.pending.name: tables.pending.delete(traces.turn_ids),
        tables.turns.name: tables.turns.delete(traces.turn_ids),
    }


def _is_one_of(users: Iterable[tuple[str, str]]) -> ds.Expression | None:
    """None where there are none."""
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
