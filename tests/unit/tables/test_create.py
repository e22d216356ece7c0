"""Tables are created when they are missing, and refused when their schema is not today's."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import turns_to_arrow
from sdpo_ray.tables.commits import SCHEMA
from sdpo_ray.tables.create import table_exists
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.specs import TURNS
from tests.support.conversations import turn


def test_a_table_exists_once_it_was_opened(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert not table_exists(layout, "turns")
    assert not Path(layout.table("turns")).exists()
    Table.turns(layout)
    assert table_exists(layout, "turns")


def test_a_table_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("t0")]), {SCHEMA: 4})
    with pytest.raises(ConfigError, match=r"schema version 4, this release reads 3: run the release that wrote it"):
        Table.turns(layout)


def test_a_table_of_an_older_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = Path(layout.table("turns"))
    path.mkdir(parents=True)
    older = CommitProperties(app_transactions=[Transaction(SCHEMA, 2)])
    DeltaTable.create(str(path), TURNS.schema, commit_properties=older)
    with pytest.raises(ConfigError, match=r"schema version 2, this release reads 3: .* or move the table away"):
        Table.turns(layout)
    assert DeltaTable(str(path)).version() == 0


def test_a_table_with_foreign_columns_is_refused_and_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = Path(layout.table("turns"))
    path.parent.mkdir(parents=True)
    write_deltalake(str(path), pa.table({"turn_id": ["t0"], "colour": ["red"]}))
    with pytest.raises(ConfigError, match="is not a `turns` table of this release"):
        Table.turns(layout)
    assert DeltaTable(str(path)).version() == 0


def test_one_table_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    Table.turns(layout)
    Path(layout.table("turns")).rename(layout.table("feedback"))
    with pytest.raises(ConfigError, match="is not a `feedback` table of this release"):
        Table.feedback(layout)
