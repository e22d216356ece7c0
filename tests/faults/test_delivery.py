"""A journal at its bound, events that are delivered twice, committers that never stop, clocks that step back."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.ingest import DUPLICATE_TURN, Ingested, ingest
from sdpo_ray.curate.pairing import NotPaired
from sdpo_ray.curate.pairing_index import index
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.headers import TURN_ID
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Turn
from sdpo_ray.tables.delta_table import Table
from tests.faults.test_disk import ask, repeat, write
from tests.support.recorded_engine import client_of, recorder_of

SEGMENT_BYTES = 16 << 10
HOUR_S = 3600.0


def shipped(log: EventLog, layout: Layout) -> Ingested:
    return ingest(
        log,
        Table.turns(layout),
        Table.feedback(layout),
        max_turns=1000,
        max_bytes=64 << 20,
        erased=lambda event: False,
        on_turns=lambda num_turns: None,
    )


def stored(layout: Layout) -> list[str]:
    return sorted(Table.turns(layout).read(["turn_id"])["turn_id"].to_pylist())


def test_a_journal_stops_at_its_bound_and_continues_when_a_committer_is_back(tmp_path: Path):
    layout, bound = Layout(tmp_path), 4 * SEGMENT_BYTES
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES, segment_s=60, max_bytes=bound)
    recorder = recorder_of(tmp_path, log)

    async def talk() -> None:
        async with client_of(recorder, repeat) as client:
            receipts = [await ask(client, f"{n} " + "x" * 100, stream=n % 2 == 0) for n in range(100)]
            taken = sum(path.stat().st_size for path in layout.journal.glob("*.log"))
            assert bound - SEGMENT_BYTES < taken <= bound
            assert None in receipts
            first_missed = receipts.index(None)
            assert first_missed > 10
            assert set(receipts[first_missed:]) == {None}
            assert recorder.counters.values["not_recorded.LogFull"] == len(receipts) - first_missed
            assert not recorder.healthy

            assert shipped(log, layout).num_turns == first_missed
            deadline = time.monotonic() + 10
            while (again := await ask(client, "again", stream=False)) is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert recorder.healthy
            assert shipped(log, layout).num_turns == 1
            assert stored(layout) == sorted([*filter(None, receipts), again])

    asyncio.run(talk())
    log.close()


def test_frames_that_are_delivered_twice_are_stored_once_and_counted(tmp_path: Path):
    layout = Layout(tmp_path)
    ids = write(layout.journal, "twice", 10)
    (segment, *others) = sorted(layout.journal.glob("*.log"))
    for path in (segment, *others):
        # As a copied volume or a restored backup would deliver.
        path.with_name(f"0{path.name}").write_bytes(path.read_bytes())
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    found = shipped(log, layout)
    assert (found.num_turns, found.refused) == (10, {DUPLICATE_TURN: 10})
    assert stored(layout) == sorted(ids)
    assert log.partitions() == []
    for path in (segment, *others):
        assert not path.exists()


def test_an_advance_ends_though_other_committers_never_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(tmp_path)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    curator = Curator(layout, log, curate=CurateConfig(), capture=CaptureConfig())
    append, rounds = curator.interactions.append, 0

    def overtaken(rows: pa.Table, positions: Mapping[str, int]) -> int | None:
        nonlocal rounds
        rounds += 1
        assert rounds < 5
        write(layout.journal, f"meanwhile {rounds}", 1)
        shipped(log, layout)
        index(Table.turns(layout), Table.pending(layout))
        return append(rows, positions)

    monkeypatch.setattr(curator.interactions, "append", overtaken)
    write(layout.journal, "first", 1)
    first, second = curator.advance(), curator.advance()
    assert (first.turns_total, second.turns_total, rounds) == (1, 2, 2)


@pytest.mark.integration
def test_a_clock_that_steps_back_loses_nothing_and_what_it_parts_is_counted(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ada's turns come before the clock's step, Bob's across it, Eve's after it, Fay's from a replica started then."""
    assert ray_cluster
    layout, now, now_ns = Layout(tmp_path), time.time, time.time_ns
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES, segment_s=60)
    ada, bob = said_by("Ada", 2, log, tmp_path), said_by("Bob", 1, log, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - HOUR_S)
        patch.setattr(time, "time_ns", lambda: now_ns() - int(HOUR_S * 1e9))
        bob += said_by("Bob", 1, log, tmp_path, answered=1)
        eve = said_by("Eve", 2, log, tmp_path)
        assert len(list(layout.journal.glob("*.log"))) == 1
        restarted = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES, segment_s=60)
        fay = said_by("Fay", 2, restarted, tmp_path)
    everything = [*ada, *bob, *eve, *fay]
    assert [event.turn_id for event in events_of(log)] == [*fay, *ada, *bob, *eve]

    curator = Curator(layout, log, curate=CurateConfig(), capture=CaptureConfig())
    first, second = curator.advance(), curator.advance()
    assert (first.turns_ingested, second.undecided) == (8, 0)
    assert stored(layout) == sorted(everything)
    assert first.refused + second.refused == {NotPaired.BEFORE_ANSWER: 1}
    pairs = curator.interactions.read(["interaction_id", "follow_up_turn_id"]).to_pylist()
    assert sorted(tuple(pair.values()) for pair in pairs) == sorted(map(tuple, (ada, eve, fay)))
    log.close()
    restarted.close()


def said_by(user: str, requests: int, log: EventLog, folder: Path, *, answered: int = 0) -> list[str]:
    """Receipts of the next requests of one conversation, of which so many are answered already."""

    async def talk() -> list[str]:
        receipts, messages = [], [message("user", f"I am {user}")]
        async with client_of(recorder_of(folder, log), repeat) as client:
            for number in range(answered + requests):
                body = {"messages": messages, "user": user}
                if number >= answered:
                    reply = await client.post("/v1/chat/completions", json=body)
                    receipts.append(reply.headers[TURN_ID])
                messages = [*messages, message("assistant", repeat(body)), message("user", f"and {number}")]
        return receipts

    return asyncio.run(talk())


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def events_of(log: EventLog) -> list[Turn]:
    """Events of all partitions, one after the other, oldest name first."""
    found = []
    for partition in log.partitions():
        others = {name: 1 << 62 for name in log.partitions() if name != partition}
        events = log.poll(others, max_events=1000, max_bytes=1 << 30).events
        found += [event for event in events if isinstance(event, Turn)]
    return found
