"""The conversation of a turn that somebody points at, as far as it is certain."""

from dataclasses import dataclass

import pyarrow.dataset as ds

from sdpo_ray.tables.delta_table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTrace:
    """Made by `conversation_of`; read by `privacy.user_footprint`."""

    turn_ids: frozenset[str]
    keys: frozenset[str]
    """The digest of its id, where the client gave it one."""
    alike: int
    """Turns that were not followed: they are of this conversation, or of another one in the same words."""


@dataclass(frozen=True, slots=True)
class _Said:
    turn_id: str
    parent: str
    continuation: str


def conversation_of(turns: Table, turn_id: str) -> ConversationTrace:
    """Everything with the same conversation id; without one, what the turn follows, and all that follows it.

    Two turns with the same words before them, and the same answer, cannot be told apart: nothing is followed over them.
    """
    keys = turns.read(["conversation_id", "keys"], where=ds.field("turn_id") == turn_id).to_pylist()
    if not keys or not keys[0]["keys"]["continuation"]:
        return ConversationTrace(turn_ids=frozenset(), keys=frozenset(), alike=0)
    (found,) = keys
    if found["conversation_id"]:
        key = found["keys"]["conversation"]
        rows = turns.read(["turn_id"], where=(ds.field("keys", "conversation") == key))
        return ConversationTrace(turn_ids=frozenset(rows["turn_id"].to_pylist()), keys=frozenset({key}), alike=0)
    start = _Said(turn_id, found["keys"]["parent"], found["keys"]["continuation"])
    before, alike_before = _before(turns, start)
    after, alike_after = _after(turns, start)
    return ConversationTrace(turn_ids=frozenset({*before, *after}), keys=frozenset(), alike=alike_before + alike_after)


def _before(turns: Table, said: _Said) -> tuple[list[str], int]:
    found: list[str] = []
    while said.parent:
        parents = _where(turns, "continuation", said.parent)
        if len(parents) != 1:
            return found, len(parents)
        said = parents[0]
        found.append(said.turn_id)
    return found, 0


def _after(turns: Table, start: _Said) -> tuple[list[str], int]:
    found: list[str] = []
    alike, waiting = 0, [start]
    while waiting:
        said = waiting.pop()
        found.append(said.turn_id)
        twins = len(_where(turns, "continuation", said.continuation)) - 1
        follow_ups = _where(turns, "parent", said.continuation)
        if twins:
            alike += twins + len(follow_ups)
        else:
            waiting += follow_ups
    return found, alike


def _where(turns: Table, key: str, value: str) -> list[_Said]:
    rows = turns.read(["turn_id", "keys"], where=ds.field("keys", key) == value).to_pylist()
    return [_Said(row["turn_id"], row["keys"]["parent"], row["keys"]["continuation"]) for row in rows]
