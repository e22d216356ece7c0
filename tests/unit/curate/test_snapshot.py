"""Snapshots of a real table: the directory holds what was drawn, and is drawn once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.curate.snapshot import count_new, draw_snapshot
from sdpo_ray.errors import DataError
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Interaction, Snapshot
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_interactions, rows_digest
from tests.support.builders import interaction
from tests.support.paths import CHECKPOINT

NOW_S = 10_000.0


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(CHECKPOINT)


def some(chat: ChatFormat, first: int, count: int) -> list[Interaction]:
    return [
        replace(interaction(chat, name=f"t{n:03d}", response=f"Answer {n}"), follow_up_at_s=NOW_S - 1000 + n)
        for n in range(first, first + count)
    ]


def table_of(layout: Layout, *batches: list[Interaction]) -> Table:
    table = Table.interactions(layout)
    for batch in batches:
        assert table.append(interactions_to_arrow(batch), {}) is not None
    return table


def config(**changes: object) -> CurateConfig:
    return CurateConfig.model_validate({"snapshot_size": 8, "held_out": 0.3} | changes)


def drawn(
    table: Table, final: Path, *, seed: int = 0, champion_version: int = 0, last_batch: int = 0, **changes: object
) -> Snapshot:
    return draw_snapshot(
        table,
        final,
        champion_version=champion_version,
        seed=seed,
        now_s=NOW_S,
        last_batch=last_batch,
        config=config(**changes),
    )


def test_a_snapshot_holds_the_rows_of_its_ids_in_the_order_of_training(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    made = [some(chat, 0, 20), some(chat, 20, 20)]
    table = table_of(layout, *made)
    snapshot = drawn(table, layout.snapshot(1))
    assert is_ready(layout.snapshot(1))
    assert read_json(layout.snapshot(1) / "snapshot.json", Snapshot) == snapshot
    rows = read_interactions(layout.snapshot(1))
    by_id = {each.interaction_id: each for batch in made for each in batch}
    assert rows == [by_id[name] for name in snapshot.interaction_ids]
    assert len(rows) == 8
    assert not any(is_held_out(each.conversation, 0.3) for each in rows)
    assert snapshot.held_out_ids
    assert all(is_held_out(by_id[name].conversation, 0.3) for name in snapshot.held_out_ids)
    assert snapshot.digest == rows_digest(rows)
    assert snapshot.snapshot_id == f"c0001-{snapshot.digest[:12]}"
    assert (snapshot.table_version, snapshot.last_batch) == (table.version, 2)
    assert snapshot.last_interaction_at_s == max(each.follow_up_at_s for each in rows)
    assert 8 + sum(each.n for each in snapshot.not_drawn) == 40


def test_a_cycle_draws_once_and_reads_it_back_wherever_it_lies_now(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path / "run")
    table = table_of(layout, some(chat, 0, 20))
    first = drawn(table, layout.snapshot(1))
    table.append(interactions_to_arrow(some(chat, 20, 20)), {})
    assert drawn(table, layout.snapshot(1), seed=5, last_batch=1) == first
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Layout(tmp_path / "moved")
    again = drawn(Table.interactions(moved), moved.snapshot(1))
    assert again == replace(first, path=str(moved.snapshot(1)))


def test_the_same_seed_and_rows_give_the_same_snapshot_however_they_were_committed(chat: ChatFormat, tmp_path: Path):
    one, other = Layout(tmp_path / "one"), Layout(tmp_path / "other")
    rows = some(chat, 0, 30)
    first = drawn(table_of(one, rows), one.snapshot(1), seed=3)
    second = drawn(table_of(other, rows[20:], rows[:20]), other.snapshot(1), seed=3)
    assert first.interaction_ids == second.interaction_ids
    assert (first.digest, first.snapshot_id) == (second.digest, second.snapshot_id)


def test_rows_after_the_last_batch_are_new_to_the_next_draw(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, some(chat, 0, 20))
    snapshot = drawn(table, layout.snapshot(1), held_out=0)

    def new(after: int) -> int:
        return count_new(table, after=after, champion_version=0, now_s=NOW_S, config=config(held_out=0))

    assert (new(0), new(snapshot.last_batch)) == (20, 0)
    Table.interactions(layout).append(interactions_to_arrow(some(chat, 20, 5)), {})
    assert (new(0), new(snapshot.last_batch)) == (25, 5)


def test_an_older_share_is_taken_from_the_batches_of_the_draw_before(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, some(chat, 0, 20), some(chat, 20, 200))
    limits = {"held_out": 0, "replay_share": 0.5, "recency_half_life": 1}
    snapshot = drawn(table, layout.snapshot(2), last_batch=1, **limits)
    assert sum(name < "t020" for name in snapshot.interaction_ids) == 4
    assert "4 for 4 that an earlier draw could have taken" in snapshot.rule


def test_nothing_to_draw_is_an_error_with_the_rule(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, some(chat, 0, 3))
    with pytest.raises(DataError, match="nothing to draw: 0 of 0 trainable"):
        drawn(table, layout.snapshot(1), champion_version=99)
    assert not layout.snapshot(1).exists()


def test_the_rows_are_found_where_compaction_and_erasure_have_put_them(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, *(some(chat, 4 * n, 4) for n in range(10)))
    assert table.maintain(every=2, keep_files_h=0)
    assert table.delete(["t000", "t039"]) == 2
    snapshot = drawn(table, layout.snapshot(1), snapshot_size=100, held_out=0)
    assert sorted(snapshot.interaction_ids) == [f"t{n:03d}" for n in range(1, 39)]
    assert snapshot.last_batch == 10


def test_rows_erased_while_a_snapshot_is_drawn_are_not_in_it(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layout = Layout(tmp_path)
    table = table_of(layout, some(chat, 0, 10))
    read = Table.read
    erased: list[int] = []

    def read_then_erase(self: Table, columns: Sequence[str] | None = None, **options: object) -> object:
        rows = read(self, columns, **options)  # type: ignore[arg-type]
        if columns is not None and not erased:
            other = Table.interactions(layout)
            erased.append(other.delete(["t003"]))
            other.purge()
        return rows

    monkeypatch.setattr(Table, "read", read_then_erase)
    snapshot = drawn(table, layout.snapshot(1), snapshot_size=100, held_out=0)
    assert erased == [1]
    assert sorted(snapshot.interaction_ids) == [f"t{n:03d}" for n in range(10) if n != 3]


def test_an_interaction_that_is_there_twice_is_refused(chat: ChatFormat, tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, some(chat, 0, 2), some(chat, 0, 1))
    with pytest.raises(DataError, match="3 rows of interactions have 2 ids"):
        drawn(table, layout.snapshot(1), held_out=0)
