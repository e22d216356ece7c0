"""A backup has all files of a run, and a run can continue from it."""

import sqlite3
from pathlib import Path

import pytest

from sdpo_ray.config import CaptureConfig
from sdpo_ray.config.data import JournalConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.backup import back_up, secret_files
from sdpo_ray.io.files import is_ready
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Turn
from tests.support.conversations import turn

SMALL = CaptureConfig(journal=JournalConfig(segment_mib=1, segment_s=3600))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "run")
    layout.root.mkdir()
    for secret in (layout.eval_key, layout.pseudonym_keys, layout.api_keys):
        secret.write_text("secret")
    (layout.root / "candidates" / "v0001").mkdir(parents=True)
    (layout.root / "candidates" / "v0001" / "model.safetensors").write_bytes(b"weights")
    (layout.root / "candidates" / ".v0002.train").mkdir()
    (layout.root / "candidates" / ".v0002.train" / "half").write_bytes(b"half")
    (layout.root / "continual.lock").touch()
    return layout


def copy(layout: Layout, to: Path, keys_to: Path | None = None) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    assert back_up(layout, to, keys_to, lambda done, total: seen.append((done, total))) == len(seen)
    return seen


def test_everything_is_copied_except_secrets_locks_and_partial_files(layout: Layout, tmp_path: Path):
    to = tmp_path / "backup"
    assert copy(layout, to) == [(1, 1)]
    assert is_ready(to)
    assert (to / "candidates" / "v0001" / "model.safetensors").read_bytes() == b"weights"
    assert {path.name for path in to.rglob("*") if path.is_file()} == {"READY", "model.safetensors"}


def test_secrets_are_copied_to_their_own_directory_and_stay_private(layout: Layout, tmp_path: Path):
    for secret in secret_files(layout):
        secret.chmod(0o600)
    copy(layout, tmp_path / "backup", tmp_path / "vault")
    assert {path.name for path in (tmp_path / "vault").iterdir()} == {"eval.key", "pseudonyms.json", "api_keys.json"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "vault").iterdir()} == {0o600}


def test_a_directory_that_is_not_empty_is_refused(layout: Layout, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(ConfigError, match="not empty"):
        copy(layout, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").exists()


def test_a_journal_that_is_written_to_meanwhile_is_read_back_from_the_copy(layout: Layout, tmp_path: Path):
    log = open_log(layout, SMALL)
    turns = [turn(f"turn-{n}", "hello", response="word " * 2000) for n in range(300)]
    written = 0

    def write_on(done: int, total: int) -> None:
        nonlocal written
        for each in turns[written : written + 100]:
            log.append(each).result(timeout=30)
        written = min(written + 100, len(turns))

    write_on(0, 0)
    begun = written
    back_up(layout, tmp_path / "backup", None, write_on)
    log.close()
    assert written > begun
    copied = open_log(Layout(tmp_path / "backup"), SMALL).poll({}, max_events=10_000, max_bytes=1 << 30)
    found = [event.turn_id for event in copied.events if isinstance(event, Turn)]
    assert set(found) >= {each.turn_id for each in turns[:begun]}
    assert len(found) == len(set(found))


def test_mlflows_database_is_copied_whole_while_it_is_written(layout: Layout, tmp_path: Path):
    with sqlite3.connect(layout.root / "mlflow.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (n INTEGER)")
        database.execute("INSERT INTO t VALUES (7)")
        database.commit()
        copy(layout, tmp_path / "backup")
    assert not list((tmp_path / "backup").glob("mlflow.db-*"))
    copied = sqlite3.connect(tmp_path / "backup" / "mlflow.db")
    assert copied.execute("SELECT n FROM t").fetchall() == [(7,)]
    copied.close()
    database.close()
