"""kill -9 at random of replicas, committers and jobs together: no receipted turn is lost or stored twice."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo_ray.config import CaptureConfig
from sdpo_ray.curate.pipeline import CurationProgress, Curator
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Snapshot
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, interactions_from_arrow
from sdpo_ray.tables.snapshot_files import read_interactions, rows_digest
from tests.faults.crash import CURATE, MAX_BYTES, SEGMENT_BYTES, START_S, Processes, fresh_seed
from tests.faults.repetitions import KILLS, SLOW
from tests.faults.simulated_users import Note, Person, read_notes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 + 20 * KILLS)]
REPLICAS = ("left", "right")
COMMANDS = {replica: ("tests.faults.replica", replica) for replica in REPLICAS} | {
    "committer": ("tests.faults.committer",),
    "second_committer": ("tests.faults.committer",),
    "job": ("tests.faults.snapshot_job", "draw"),
}
if SLOW:
    # Two jobs take too long for the default lane.
    COMMANDS["second_job"] = ("tests.faults.snapshot_job", "advance")
LONGEST_LIFE_S = dict.fromkeys(COMMANDS, 1.5) | {"job": 4.0, "second_job": 4.0}


@pytest.fixture
def processes(ray_cluster: str, tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path, COMMANDS, {"RAY_ADDRESS": ray_cluster})
    yield running
    running.kill_all()


def test_nothing_receipted_is_lost_and_nothing_is_there_twice(processes: Processes, tmp_path: Path):
    layout, when = Layout(tmp_path), random.Random(fresh_seed())
    for name in COMMANDS:
        processes.start(name)
    wait_for_snapshot(layout, processes, after=0)
    largest = 0
    for name in order(when):
        # Sometimes the kill comes during the start.
        if when.random() < 0.75:
            processes.wait_for(name)
        until = time.monotonic() + when.uniform(0, LONGEST_LIFE_S[name])
        while time.monotonic() < until:
            processes.require_alive()
            largest = max(largest, size_of(layout.journal))
            time.sleep(0.01)
        processes.kill(name)
        processes.start(name)
    wait_for_snapshot(layout, processes, after=num_snapshots(layout))
    processes.kill_all()

    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES)
    curator = Curator(layout, log, curate=CURATE, capture=CaptureConfig())
    settle(curator)
    notes = {replica: read_notes(tmp_path / f"{replica}.notes") for replica in REPLICAS}
    print(f"{curator.turns.num_rows} turns, {num_snapshots(layout)} snapshots, journal at most {largest} bytes")
    assert log.partitions() == []
    # The bound is checked before a segment is begun, and several writers may begin one at the same moment.
    assert 0 < largest <= MAX_BYTES + len(REPLICAS) * SEGMENT_BYTES
    assert_turns(curator, notes)
    assert_pairs(curator, notes)
    assert_comments(curator, notes)
    assert_snapshots(layout, curator)


def order(when: random.Random) -> Iterator[str]:
    """Names to kill, each about equally often, in random order."""
    left: list[str] = []
    for _ in range(KILLS):
        left = left or when.sample(list(COMMANDS), len(COMMANDS))
        yield left.pop()


def num_snapshots(layout: Layout) -> int:
    return len(list(layout.root.glob("snapshots/*/READY")))


def wait_for_snapshot(layout: Layout, processes: Processes, *, after: int) -> None:
    deadline = time.monotonic() + START_S
    while num_snapshots(layout) <= after:
        processes.require_alive()
        assert time.monotonic() < deadline, "the job draws nothing"
        time.sleep(0.05)


def settle(curator: Curator) -> None:
    """Advance until there is nothing left to do."""
    while True:
        progress: CurationProgress = curator.advance()
        if not progress.turns_ingested + progress.feedback_ingested + progress.undecided:
            return


def size_of(journal: Path) -> int:
    size = 0
    for path in journal.glob("*.log"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
    return size


def assert_turns(curator: Curator, notes: dict[str, list[Note]]) -> None:
    stored = Counter(curator.turns.read(["turn_id"])["turn_id"].to_pylist())
    everything = [note for replica in notes.values() for note in replica]
    receipts = {note.turn_id for note in everything if note.what == "receipt"}
    assert len(receipts) > 10 * KILLS
    assert receipts - stored.keys() == set()
    assert set(stored.values()) == {1}
    assert stored.keys() <= {note.turn_id for note in everything if note.what == "ask"}
    assert Counter(curator.pending.read(["turn_id"])["turn_id"].to_pylist()) == stored


def assert_pairs(curator: Curator, notes: dict[str, list[Note]]) -> None:
    """Every pair is true, and every user who is not a stranger has theirs."""
    stored = set(curator.turns.read(["turn_id"])["turn_id"].to_pylist())
    asked = {note.turn_id: (replica, note) for replica in notes for note in notes[replica] if note.what == "ask"}
    rows = curator.interactions.read(["interaction_id", "follow_up_turn_id"]).to_pylist()
    pairs = [each for each in rows if each["follow_up_turn_id"] in asked]
    assert len(pairs) > KILLS
    assert [each for each in pairs if asked[each["follow_up_turn_id"]][1].follows != each["interaction_id"]] == []
    paired = Counter(each["interaction_id"] for each in pairs)
    assert set(paired.values()) == {1}
    followed = {
        note.follows
        for turn_id, (replica, note) in asked.items()
        if turn_id in stored and note.follows in stored and not Person(replica=replica, number=note.person).is_stranger
    }
    assert followed - paired.keys() == set()


def assert_comments(curator: Curator, notes: dict[str, list[Note]]) -> None:
    stored = feedback_from_arrow(curator.feedback.read())
    about = Counter(each.turn_id for each in stored)
    everything = [note for replica in notes.values() for note in replica]
    receipts = {note.turn_id for note in everything if note.what == "comment_receipt"}
    assert len(receipts) > KILLS
    assert receipts - about.keys() == set()
    assert set(about.values()) == {1}
    known = {note.turn_id for note in everything if note.what == "receipt"}
    expected = Counter(each.feedback_id for each in stored if each.turn_id in known)
    rows = curator.interactions.read(["interaction_id"])["interaction_id"].to_pylist()
    found = Counter(each for each in rows if each.startswith("feedback-"))
    assert expected - found == Counter()
    assert set(found.values()) == {1}


def assert_snapshots(layout: Layout, curator: Curator) -> None:
    """Each snapshot holds whole interactions of the table, none twice; each was drawn from more rows than the last."""
    stored = {each.interaction_id: each for each in interactions_from_arrow(curator.interactions.read())}
    drawn = [read_json(path, Snapshot) for path in sorted(layout.root.glob("snapshots/c*/snapshot.json"))]
    for snapshot in drawn:
        rows = read_interactions(Path(snapshot.path))
        assert [each.interaction_id for each in rows] == list(snapshot.interaction_ids)
        assert len(set(snapshot.interaction_ids)) == len(snapshot.interaction_ids) > 0
        assert rows_digest(rows) == snapshot.digest
        assert rows == [stored[each] for each in snapshot.interaction_ids]
    batches = [snapshot.last_batch for snapshot in drawn]
    assert batches == sorted(set(batches))
