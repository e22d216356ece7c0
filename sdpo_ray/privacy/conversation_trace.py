"""The conversation of a turn, as far as the keys of pairing prove it."""

from dataclasses import dataclass

import pyarrow.dataset as ds

from sdpo_ray.tables.delta_table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTrace:
    """Made by `trace_conversation`; read by `privacy.user_footprint`."""

    turn_ids: frozenset[str]
    conversations: frozenset[str]
    """The digest of the conversation's id, if the client sent one."""
    ambiguous_turns: int
    """Turns that were not followed: they belong to this conversation, or to another one with the same text."""


@dataclass(frozen=True, slots=True)
class _LinkedTurn:
    turn_id: str
    parent: str
    continuation: str


def trace_conversation(turns: Table, turn_id: str) -> ConversationTrace:
    """All turns with the same conversation id; without an id, the turns before `turn_id` and all turns after it.

    Two turns with the same text before them and the same response have the same keys. The trace stops there.
    """
    rows = turns.read(["conversation_id", "keys"], where=ds.field("turn_id") == turn_id).to_pylist()
    if not rows or not rows[0]["keys"]["continuation"]:
        return ConversationTrace(turn_ids=frozenset(), conversations=frozenset(), ambiguous_turns=0)
    (row,) = rows
    if row["conversation_id"]:
        key = row["keys"]["conversation"]
        same = turns.read(["turn_id"], where=(ds.field("keys", "conversation") == key))
        turn_ids = frozenset(same["turn_id"].to_pylist())
        return ConversationTrace(turn_ids=turn_ids, conversations=frozenset({key}), ambiguous_turns=0)
    start = _LinkedTurn(turn_id, row["keys"]["parent"], row["keys"]["continuation"])
    before, ambiguous_before = _before(turns, start)
    after, ambiguous_after = _after(turns, start)
    return ConversationTrace(
        turn_ids=frozenset({*before, *after}),
        conversations=frozenset(),
        ambiguous_turns=ambiguous_before + ambiguous_after,
    )


def _before(turns: Table, turn: _LinkedTurn) -> tuple[list[str], int]:
    found: list[str] = []
    while turn.parent:
        parents = _with_key(turns, "continuation", turn.parent)
        if len(parents) != 1:
            return found, len(parents)
        turn = parents[0]
        found.append(turn.turn_id)
    return found, 0


def _after(turns: Table, start: _LinkedTurn) -> tuple[list[str], int]:
    found: list[str] = []
    ambiguous, queue = 0, [start]
    while queue:
        turn = queue.pop()
        found.append(turn.turn_id)
        twins = len(_with_key(turns, "continuation", turn.continuation)) - 1
        follow_ups = _with_key(turns, "parent", turn.continuation)
        if twins:
            ambiguous += twins + len(follow_ups)
        else:
            queue += follow_ups
    return found, ambiguous


def _with_key(turns: Table, key: str, value: str) -> list[_LinkedTurn]:
    rows = turns.read(["turn_id", "keys"], where=ds.field("keys", key) == value).to_pylist()
    return [_LinkedTurn(row["turn_id"], row["keys"]["parent"], row["keys"]["continuation"]) for row in rows]
