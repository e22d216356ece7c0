from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.curate.pairing import PairingCursor, PairingRow, pair
from sdpo_ray.curate.pairing_index import index, pairing_cursor, related
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import PairingKeys, Turn
from sdpo_ray.tables.arrow_schemas import PENDING, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import Scenario, dialogue, pairing_row, scenarios, turn


class Tables:
    def __init__(self, root: Path, *batches: Sequence[Turn]) -> None:
        """Commit and index each batch of turns."""
        self.layout = Layout(root)
        self.turns, self.pending = Table.turns(self.layout), Table.pending(self.layout)
        for batch in batches:
            self.add(*batch)
            index(self.turns, self.pending)

    def add(self, *turns: Turn) -> None:
        self.turns.append(turns_to_arrow(turns), {})

    @property
    def rows(self) -> list[PairingRow]:
        found = self.pending.read([*PairingRow.__dataclass_fields__]).to_pylist()
        return sorted((PairingRow(**row) for row in found), key=lambda each: each.turn_id)


def names(found: Sequence[PairingRow]) -> list[str]:
    return sorted(each.turn_id for each in found)


def test_every_turn_is_indexed_by_a_small_row_with_its_batch(tmp_path):
    ann, bob = dialogue("ann"), dialogue("bob")
    tables = Tables(tmp_path, ann, bob)
    assert tables.rows == [*(pairing_row(each, batch=1) for each in ann), *(pairing_row(each, batch=2) for each in bob)]


def test_the_index_holds_no_user_text():
    columns = {"turn_id", "prompt", "parent", "continuation", "started_at_s", "finished_at_s", "turn_batch"}
    assert set(PENDING.names) == columns
    assert not columns & {"user", "tenant", "messages", "response", "conversation_id"}


def test_indexing_again_and_by_two_at_once_changes_nothing(tmp_path, monkeypatch):
    tables = Tables(tmp_path)
    tables.add(*dialogue("ann"))
    append, overtaken = Table.append, []

    def after_another(self: Table, *what: Any) -> int | None:
        if not overtaken:
            overtaken.append(True)
            index(Table.turns(tables.layout), Table.pending(tables.layout))
        return append(self, *what)

    monkeypatch.setattr(Table, "append", after_another)
    index(tables.turns, tables.pending)
    index(tables.turns, tables.pending)
    assert names(tables.rows) == ["ann-0", "ann-1"]
    assert (tables.pending.batch, tables.pending.position("turns")) == (1, 1)


def test_an_index_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    tables = Tables(tmp_path, dialogue("ann"))
    tables.add(*dialogue("bob"))
    tables.add(*dialogue("eve"))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Table, "append", die)
        index(tables.turns, tables.pending)
    index(tables.turns, tables.pending)
    assert [(each.turn_id, each.turn_batch, each.batch) for each in tables.rows] == [
        ("ann-0", 1, 1),
        ("ann-1", 1, 1),
        ("bob-0", 2, 2),
        ("bob-1", 2, 2),
        ("eve-0", 3, 2),
        ("eve-1", 3, 2),
    ]


def test_a_backlog_is_indexed_in_batches_of_the_size_of_a_round(tmp_path):
    tables = Tables(tmp_path)
    for batch, size in enumerate([3, 2, 4, 1, 6]):
        tables.add(*(turn(f"b{batch}-{n}") for n in range(size)))
    index(tables.turns, tables.pending, max_turns=5)
    assert [(each.turn_batch, each.batch) for each in tables.rows if each.turn_id.endswith("-0")] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
    ]
    assert (tables.pending.position("turns"), len(tables.rows)) == (5, 16)


def test_turns_without_keys_are_not_indexed(tmp_path):
    tables = Tables(tmp_path, [turn("t0", keys=PairingKeys())], [turn("t1")])
    assert names(tables.rows) == ["t1"]
    assert tables.pending.position("turns") == 2


def test_a_round_takes_whole_batches_up_to_its_size_and_never_none(tmp_path):
    sizes = [3, 2, 4, 1]
    batches = [[turn(f"b{batch}-{n}") for n in range(size)] for batch, size in enumerate(sizes)]
    tables = Tables(tmp_path, *batches)

    def upto(decided: int, settled: int, max_turns: int) -> int:
        found = pairing_cursor(tables.pending, decided=decided, seen=0, settled=settled, max_turns=max_turns)
        assert (found.decided, found.seen) == (decided, 0)
        return found.upto

    assert [upto(0, 4, size) for size in (1, 3, 4, 5, 8, 9, 10, 99)] == [1, 1, 1, 2, 2, 3, 4, 4]
    assert [upto(1, 4, size) for size in (1, 5, 6, 7)] == [2, 2, 3, 4]
    assert [upto(0, settled, 99) for settled in (0, 1, 3)] == [0, 1, 3]
    assert upto(4, 4, 99) == 4
    assert upto(3, 2, 99) == 3


def test_batches_without_a_row_are_decided_too(tmp_path):
    tables = Tables(tmp_path, [turn("t0")], [turn("t1", keys=PairingKeys())], [turn("t2", keys=PairingKeys())])
    assert pairing_cursor(tables.pending, decided=1, seen=0, settled=3, max_turns=9).upto == 3
    assert pairing_cursor(tables.pending, decided=0, seen=0, settled=3, max_turns=1).upto == 3


def test_related_are_the_new_ones_with_all_that_share_a_key_and_nothing_else(tmp_path):
    ann, bob, eve = dialogue("ann", follow_ups=2), dialogue("bob"), dialogue("eve")
    tables = Tables(tmp_path, [ann[0], bob[0], bob[1]], [ann[1], eve[0]], [ann[2], eve[1]])
    assert names(related(tables.pending, PairingCursor(decided=0, upto=1, seen=3), newest=tables.pending.batch)) == [
        "bob-0",
        "bob-1",
    ]
    assert names(related(tables.pending, PairingCursor(decided=1, upto=2, seen=3), newest=tables.pending.batch)) == [
        "ann-0",
        "ann-1",
    ]
    assert names(related(tables.pending, PairingCursor(decided=3, upto=3, seen=3), newest=tables.pending.batch)) == []
    # Answers that arrived since the last round bring their waiting follow-ups.
    assert names(related(tables.pending, PairingCursor(decided=2, upto=2, seen=1), newest=tables.pending.batch)) == [
        "ann-1",
        "ann-2",
        "eve-0",
        "eve-1",
    ]


def test_openings_are_related_to_no_turn(tmp_path):
    tables = Tables(tmp_path, [turn(f"t{n}", "hello") for n in range(3)])
    assert related(tables.pending, PairingCursor(decided=0, upto=1, seen=1), newest=tables.pending.batch) == []


@settings(deadline=None, max_examples=15)
@given(scenarios(lossy=True, clock_steps=True), st.data())
def test_pairing_what_is_related_gives_what_pairing_everything_gives(
    tmp_path_factory: pytest.TempPathFactory, scenario: Scenario, data: st.DataObject
):
    turns, batches = list(scenario.turns), []
    while turns:
        size = data.draw(st.integers(1, len(turns)))
        batches.append(turns[:size])
        turns = turns[size:]
    tables = Tables(tmp_path_factory.mktemp("run"), *batches)
    decided = data.draw(st.integers(0, len(batches)))
    upto = data.draw(st.integers(decided, len(batches)))
    now = PairingCursor(decided=decided, upto=upto, seen=data.draw(st.integers(decided, len(batches))))
    found, expected = pair(related(tables.pending, now, newest=tables.pending.batch), now), pair(tables.rows, now)
    assert (set(found.pairs), found.not_paired) == (set(expected.pairs), expected.not_paired)


def test_an_expired_answer_is_unknown_to_its_follow_up(tmp_path):
    first, second = dialogue("ann")
    tables = Tables(tmp_path, [first], [turn("t0", at_s=500.0)])
    assert tables.pending.maintain(every=2, keep_files_h=24, expire_before_s=300.0)
    assert names(tables.rows) == ["t0"]
    tables.add(second)
    index(tables.turns, tables.pending)
    now = pairing_cursor(tables.pending, decided=2, seen=2, settled=3, max_turns=9)
    assert pair(related(tables.pending, now, newest=tables.pending.batch), now).not_paired == {"unknown_answer": 1}
