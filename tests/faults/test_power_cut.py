"""Power cuts: nothing is truncated or counted as done on the strength of a commit that is not synced."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Event, Feedback
from sdpo_ray.tables.delta_table import Table
from tests.faults.crash import SEGMENT_BYTES
from tests.support.conversations import dialogue

pytestmark = pytest.mark.integration


def write(layout: Layout, events: list[Event]) -> None:
    journal = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    for each in [journal.append(event) for event in events]:
        each.result()
    journal.close()


def talk(name: str, at_s: float) -> list[Event]:
    """A conversation, and a comment on its first answer."""
    turns = dialogue(name, at_s=at_s)
    comment = Feedback(
        feedback_id=f"feedback on {name}",
        turn_id=turns[0].turn_id,
        tenant="default",
        user="",
        consent=Consent.TRAIN,
        comment="Shorter.",
        given_at_s=at_s,
    )
    return [*turns, comment]


def test_every_effect_of_a_commit_comes_after_its_sync(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A second committer commits, without syncing, after each of our syncs."""
    assert ray_cluster
    layout = Layout(tmp_path)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    curate = CurateConfig(max_age_days=1e6)
    curator, other = (Curator(layout, log, curate=curate, capture=CaptureConfig()) for _ in range(2))
    synced: dict[tuple[str, str], int] = {}
    number = 0

    def on_disk(table: Table, name: str) -> int:
        return synced.get((table.name, name), 0)

    real_append, real_sync, real_truncate = Table.append, Table.sync, JournalLog.truncate

    def sync(table: Table) -> None:
        nonlocal number
        real_sync(table)
        if table in (curator.turns, curator.feedback, curator.pending, curator.interactions):
            for name in ("table.batch", *log.partitions()):
                synced[table.name, name] = table.position(name) or 0
            if table is curator.turns and number < 4:
                number += 1
                write(layout, talk(f"late {number}", at_s=1000.0 * number))
                with monkeypatch.context() as unwatched:
                    unwatched.setattr(JournalLog, "truncate", lambda *_: None)
                    unwatched.setattr(Table, "sync", lambda _: None)
                    unwatched.setattr(Table, "append", real_append)
                    other.advance()

    def append(table: Table, rows: pa.Table, positions: Mapping[str, int]) -> int | None:
        if table is curator.pending:
            assert positions["turns"] <= on_disk(curator.turns, "table.batch")
        if table is curator.interactions:
            assert positions["pending.decided"] <= on_disk(curator.pending, "table.batch")
            assert positions["pending.seen"] <= on_disk(curator.pending, "table.batch")
            assert positions["feedback.decided"] <= on_disk(curator.feedback, "table.batch")
        return real_append(table, rows, positions)

    def truncate(reader: EventLog, upto: Mapping[str, int]) -> None:
        for partition, position in upto.items():
            assert position <= on_disk(curator.turns, partition)
        real_truncate(reader, upto)

    write(layout, talk("early", at_s=100.0))
    with monkeypatch.context() as patch:
        patch.setattr(Table, "sync", sync)
        patch.setattr(Table, "append", append)
        patch.setattr(JournalLog, "truncate", truncate)
        while number < 4:
            curator.advance()
    while curator.advance().undecided:
        continue
    names = ["early", *(f"late {each}" for each in range(1, number + 1))]
    assert number == 4
    rows = curator.interactions.read(["interaction_id"])["interaction_id"].to_pylist()
    assert sorted(rows) == sorted([f"{name}-0" for name in names] + [f"feedback on {name}" for name in names])
    assert log.partitions() == []
