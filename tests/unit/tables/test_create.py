"""Tables of versions 1 and 2, as older releases wrote them, become today's with nothing lost."""

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Interaction, PairingKeys, Redaction, ToolCall, Turn
from sdpo_ray.tables import create as migrations
from sdpo_ray.tables.arrow_schemas import (
    content_of,
    interactions_from_arrow,
    interactions_to_arrow,
    split_of,
    turns_from_arrow,
    turns_to_arrow,
)
from sdpo_ray.tables.commits import MIGRATED
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import turn

TEXT, NUMBER = pa.string(), pa.float64()
TOOL_CALL = pa.struct([("call_id", TEXT), ("name", TEXT), ("arguments", TEXT)])
MESSAGE = pa.struct([("role", TEXT), ("content", TEXT), ("tool_calls", pa.list_(TOOL_CALL)), ("tool_call_id", TEXT)])
SPAN = pa.struct([("policy_version", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
SAMPLING = pa.struct(
    [
        *(("temperature", NUMBER), ("top_p", NUMBER)),
        *(("top_k", pa.int64()), ("max_tokens", pa.int64()), ("seed", pa.int64())),
    ]
)
OLD_TURN = pa.schema(
    [
        *((name, TEXT) for name in ("turn_id", "tenant", "user", "conversation_id", "consent")),
        ("messages", pa.list_(MESSAGE)),
        *((name, TEXT) for name in ("tools", "template_kwargs", "response")),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("response_logprobs", pa.list_(NUMBER)),
        ("version_spans", pa.list_(SPAN)),
        ("finish_reason", TEXT),
        ("sampling", SAMPLING),
        *(("started_at_s", NUMBER), ("finished_at_s", NUMBER)),
    ]
)
OLD_TURNS = pa.schema([*OLD_TURN, *(pa.field(name, TEXT) for name in ("prompt_key", "parent_key", "continuation_key"))])
OLD_INTERACTIONS = pa.schema(
    [
        ("interaction_id", TEXT),
        ("policy_version", pa.int32()),
        ("conversation", TEXT),
        ("follow_up_at_s", NUMBER),
        ("follow_up_turn_id", TEXT),
        ("follow_up", TEXT),
        ("turn", pa.struct(list(OLD_TURN))),
    ]
)

KEYS = pa.struct([(name, TEXT) for name in ("prompt", "parent", "continuation", "conversation")])
REDACTIONS = pa.list_(pa.struct([("kind", TEXT), ("n", pa.int64())]))
TURN_2 = pa.schema([*OLD_TURN, ("keys", KEYS), ("redactions", REDACTIONS)])
LIGHT_2 = [("policy_version", pa.int32()), ("tenant", TEXT), ("user", TEXT), ("split", pa.int64()), ("content", TEXT)]
TURNS_2 = pa.schema(
    [
        *(("batch", pa.int64()), ("finished_at_s", NUMBER)),
        *(TURN_2.field(name) for name in TURN_2.names if name != "finished_at_s"),
    ]
)
INTERACTIONS_2 = pa.schema(
    [
        *(("batch", pa.int64()), ("follow_up_at_s", NUMBER), ("interaction_id", TEXT), ("conversation", TEXT)),
        *(("follow_up_turn_id", TEXT), ("follow_up", TEXT), ("turn", pa.struct(list(TURN_2))), *LIGHT_2),
    ]
)
PENDING_2 = pa.schema(
    [
        *(("batch", pa.int64()), ("finished_at_s", NUMBER)),
        *((name, TEXT) for name in ("turn_id", "prompt", "parent", "continuation")),
        *(("started_at_s", NUMBER), ("turn_batch", pa.int64())),
    ]
)


def old_row(made: Turn) -> dict[str, object]:
    row = turns_to_arrow([made]).to_pylist()[0]
    return {name: row[name] for name in OLD_TURN.names}


def old_table(layout: Layout, name: str, schema: pa.Schema, time_column: str) -> DeltaTable:
    path = layout.root / "tables" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return DeltaTable.create(
        str(path), schema, mode="ignore", configuration={"delta.dataSkippingStatsColumns": time_column}
    )


def old_append(table: DeltaTable, rows: list[dict[str, object]], schema: pa.Schema, positions: dict[str, int]) -> None:
    write_deltalake(
        table,
        pa.Table.from_pylist(rows, schema=schema),
        mode="append",
        writer_properties=WriterProperties(compression="ZSTD"),
        commit_properties=CommitProperties(
            app_transactions=[Transaction(log, position) for log, position in positions.items()]
        ),
    )


def old_turns(layout: Layout, *turns: Turn) -> DeltaTable:
    """One commit a turn."""
    table = old_table(layout, "turns", OLD_TURNS, "finished_at_s")
    for number, made in enumerate(turns, start=1):
        keys = {"prompt_key": "p", "parent_key": "", "continuation_key": f"c{number}"}
        old_append(table, [old_row(made) | keys], OLD_TURNS, {"replica": 100 * number, "shipment": number})
    return table


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def test_turns_of_version_1_become_todays_with_their_positions(tmp_path):
    layout = Layout(tmp_path)
    made = [turn(f"t{number}", f"question {number}", user="u", at_s=float(number)) for number in range(130)]
    version = old_turns(layout, *made).version()
    table = Table.turns(layout)
    assert turns_from_arrow(table.read().sort_by("started_at_s")) == [
        replace(each, keys=PairingKeys()) for each in made
    ]
    assert (table.num_rows, table.batch) == (130, 130)
    assert (table.position("replica"), table.position("shipment")) == (13000, 130)
    # The properties, then the rows: the schema changes with the rows, in one commit.
    assert table.version == version + 2
    # Batches are numbered in the order of the commits.
    numbered = table.read(["turn_id", "batch"])
    batches = dict(zip(*(numbered[name].to_pylist() for name in numbered.column_names), strict=True))
    assert batches == {f"t{number}": number + 1 for number in range(130)}
    assert ids(table, after=128) == ["t128", "t129"]


def test_a_migrated_table_is_one_like_any_other(tmp_path):
    layout = Layout(tmp_path)
    old_turns(layout, turn("t0"), turn("t1"), turn("t2"))
    table = Table.turns(layout)
    assert table.append(turns_to_arrow([turn("t3")]), {"replica": 400}) == 4
    again = Table.turns(layout)
    assert again.version == table.version
    assert again.maintain(every=1, keep_files_h=0)
    assert again.delete(["t1"]) == 1
    again.purge()
    assert ids(again) == ["t0", "t2", "t3"]
    assert turns_from_arrow(again.read(after=3, upto=4)) == [turn("t3")]


def test_interactions_of_version_1_get_the_light_columns(tmp_path):
    layout = Layout(tmp_path)
    table = old_table(layout, "interactions", OLD_INTERACTIONS, "follow_up_at_s")
    made = [
        Interaction(
            interaction_id=f"t{number}",
            turn=replace(turn(f"t{number}", tenant="acme", user="k.ann"), keys=PairingKeys()),
            follow_up=f"shorter {number}",
            follow_up_turn_id="f",
            follow_up_at_s=float(number),
            conversation=f"c{number}",
        )
        for number in range(3)
    ]
    rows = [
        {
            "interaction_id": each.interaction_id,
            "policy_version": 3,
            "conversation": each.conversation,
            "follow_up_at_s": each.follow_up_at_s,
            "follow_up_turn_id": "f",
            "follow_up": each.follow_up,
            "turn": old_row(each.turn),
        }
        for each in made
    ]
    old_append(table, rows[:2], OLD_INTERACTIONS, {"decided": 1})
    old_append(table, rows[2:], OLD_INTERACTIONS, {"decided": 2})
    migrated = Table.interactions(layout)
    stored = migrated.read().sort_by("interaction_id")
    assert interactions_from_arrow(stored) == made
    assert (migrated.batch, migrated.position("decided")) == (2, 2)
    assert stored["split"].to_pylist() == [split_of(f"c{number}") for number in range(3)]
    assert stored["content"].to_pylist() == [content_of(each) for each in made]
    assert stored["tenant"].to_pylist() == ["acme"] * 3
    assert stored["policy_version"].to_pylist() == [3] * 3
    assert migrated.read(["interaction_id"], after=1)["interaction_id"].to_pylist() == ["t2"]


def test_an_empty_table_of_version_1_becomes_an_empty_one(tmp_path):
    layout = Layout(tmp_path)
    old_turns(layout)
    table = Table.turns(layout)
    assert (table.num_rows, table.batch, ids(table)) == (0, 0, [])
    assert table.append(turns_to_arrow([turn("t0")]), {"log": 1}) == 1


def test_a_migration_holds_a_bounded_number_of_rows(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table = old_table(layout, "turns", OLD_TURNS, "finished_at_s")
    row = old_row(turn("t")) | {"prompt_key": "p", "parent_key": "", "continuation_key": "c"}
    old_append(table, [row | {"turn_id": f"t{number:04d}"} for number in range(2500)], OLD_TURNS, {"replica": 1})
    sizes, step = [], migrations._turns_of_1

    def counted(rows: pa.Table) -> pa.Table:
        sizes.append(rows.num_rows)
        return step(rows)

    monkeypatch.setitem(migrations._STEPS, ("turns", 0, tuple(OLD_TURNS.names)), counted)
    assert ids(Table.turns(layout)) == [f"t{number:04d}" for number in range(2500)]
    assert sizes == [1024, 1024, 452]


def test_two_processes_that_migrate_at_once_both_end_well(tmp_path):
    layout = Layout(tmp_path)
    old_turns(layout, *(turn(f"t{number:02d}") for number in range(20)))
    together, tables = threading.Barrier(2), []

    def migrate() -> None:
        together.wait(timeout=10)
        tables.append(Table.turns(layout))

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ids(table) for table in tables] == [[f"t{number:02d}" for number in range(20)]] * 2
    assert [table.position("replica") for table in tables] == [2000] * 2


def test_what_the_older_release_appends_during_a_migration_is_migrated_too(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    old_turns(layout, turn("t0"))
    rows, late = migrations._rows, []

    def append_late() -> None:
        keys = {"prompt_key": "p", "parent_key": "", "continuation_key": "c"}
        old = DeltaTable(layout.table("turns"))
        old_append(old, [old_row(turn("late")) | keys], OLD_TURNS, {"replica": 200})

    def with_a_late_one(*what: object) -> object:
        yield from rows(*what)
        if not late:
            # Rows are asked for on a thread of delta-rs, which cannot start another commit.
            late.append(threading.Thread(target=append_late))
            late[0].start()
            late[0].join()

    monkeypatch.setattr(migrations, "_rows", with_a_late_one)
    table = Table.turns(layout)
    assert (ids(table), table.position("replica"), table.batch) == (["late", "t0"], 200, 2)


def test_a_migration_that_dies_is_done_by_the_next_to_open_the_table(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    layout = Layout(tmp_path)
    old_turns(layout, turn("t0"), turn("t1"))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "write_deltalake", die)
        with pytest.raises(Killed):
            Table.turns(layout)
    table = Table.turns(layout)
    assert (ids(table), table.position("replica")) == (["t0", "t1"], 200)


def test_a_table_of_a_newer_release_is_refused(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("t0")]), {MIGRATED: 4})
    with pytest.raises(ConfigError, match=r"version 4 .* this release knows 3"):
        Table.turns(layout)


def test_a_table_with_columns_of_somebody_else_is_refused_and_left_alone(tmp_path):
    layout = Layout(tmp_path)
    path = Path(layout.table("turns"))
    path.parent.mkdir(parents=True)
    write_deltalake(str(path), pa.table({"turn_id": ["t0"], "colour": ["red"]}))
    with pytest.raises(ConfigError, match="no table `turns` of ours"):
        Table.turns(layout)
    assert DeltaTable(str(path)).version() == 0


def test_one_table_in_the_place_of_another_is_refused(tmp_path):
    layout = Layout(tmp_path)
    Table.turns(layout)
    Path(layout.table("turns")).rename(layout.table("feedback"))
    with pytest.raises(ConfigError, match="no table `feedback` of ours"):
        Table.feedback(layout)


def row_2(made: Turn) -> dict[str, object]:
    row = turns_to_arrow([made]).to_pylist()[0]
    sampling = {name: row["sampling"][name] for name in (field.name for field in SAMPLING)}
    return {name: row[name] for name in TURN_2.names} | {"sampling": sampling}


def table_2(layout: Layout, name: str, schema: pa.Schema, batches: list[list[dict[str, object]]]) -> None:
    """A table as version 2 left it: rows know their batch, and the log its number."""
    table = old_table(layout, name, schema, f"batch,{schema.names[1]}")
    for batch, rows in enumerate(batches, start=1):
        numbered = [row | {"batch": batch} for row in rows]
        old_append(table, numbered, schema, {"replica": 10 * batch, "table.batch": batch, MIGRATED: 2})


def test_turns_of_version_2_keep_their_batches_keys_and_redactions(tmp_path):
    layout = Layout(tmp_path)
    made = [turn(f"t{number}", f"question {number}", user="u", at_s=float(number)) for number in range(6)]
    made[5] = replace(
        made[5], prompt_ids=(), response_ids=(), response_logprobs=(), redactions=(Redaction(kind="email", n=2),)
    )
    table_2(layout, "turns", TURNS_2, [[row_2(each) for each in made[start : start + 2]] for start in (0, 2, 4)])
    table = Table.turns(layout)
    assert turns_from_arrow(table.read().sort_by("started_at_s")) == made
    assert (table.batch, table.position("replica"), table.position(MIGRATED)) == (3, 30, 3)
    assert ids(table, after=1, upto=2) == ["t2", "t3"]
    called = replace(turn("t6"), response_calls=(ToolCall(call_id="", name="f", arguments="{}"),), adapter="ann@v1")
    assert table.append(turns_to_arrow([called]), {"replica": 40}) == 4
    again = Table.turns(layout)
    assert turns_from_arrow(again.read(after=3)) == [called]
    assert again.version == table.version


def test_interactions_of_version_2_keep_what_a_draw_looks_at(tmp_path):
    layout = Layout(tmp_path)
    made = [
        Interaction(
            interaction_id=f"t{number}",
            turn=turn(f"t{number}", tenant="acme", user="k.ann"),
            follow_up=f"shorter {number}",
            follow_up_turn_id="f",
            follow_up_at_s=float(number),
            conversation=f"c{number}",
        )
        for number in range(3)
    ]
    stored = interactions_to_arrow(made).to_pylist()
    rows = [row | {"turn": row_2(each.turn)} for row, each in zip(stored, made, strict=True)]
    table_2(layout, "interactions", INTERACTIONS_2, [rows[:2], rows[2:]])
    migrated = Table.interactions(layout)
    found = migrated.read().sort_by("interaction_id")
    assert interactions_from_arrow(found) == made
    assert found["content"].to_pylist() == [content_of(each) for each in made]
    assert migrated.read(["interaction_id"], after=1)["interaction_id"].to_pylist() == ["t2"]


def test_a_table_that_did_not_change_is_only_marked(tmp_path):
    layout = Layout(tmp_path)
    row = {"turn_id": "t0", "prompt": "p", "parent": "", "continuation": "c", "started_at_s": 1.0, "turn_batch": 1}
    table_2(layout, "pending", PENDING_2, [[row | {"finished_at_s": 2.0}]])
    files = set(Path(layout.table("pending")).glob("*.parquet"))
    table = Table.pending(layout)
    assert table.read(["turn_id", "batch"]).to_pylist() == [{"turn_id": "t0", "batch": 1}]
    assert (table.position(MIGRATED), table.batch) == (3, 1)
    assert set(Path(layout.table("pending")).glob("*.parquet")) >= files
    assert Table.pending(layout).version == table.version


def test_a_table_of_version_2_with_other_columns_is_refused(tmp_path):
    layout = Layout(tmp_path)
    table_2(layout, "feedback", PENDING_2, [])
    table = DeltaTable(layout.table("feedback"))
    old_append(table, [], PENDING_2, {MIGRATED: 2})
    with pytest.raises(ConfigError, match="no table `feedback` of ours"):
        Table.feedback(layout)
