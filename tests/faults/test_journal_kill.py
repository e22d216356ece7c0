"""kill -9 of the journal's writer and of its reader: nothing acknowledged is lost, nothing is read twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpo_ray.eventlog.journal.log import JournalLog
from tests.faults.crash import REPOSITORY, fresh_seed
from tests.faults.repetitions import KILLS

pytestmark = pytest.mark.timeout(60 + 5 * KILLS)
SEGMENT_BYTES = 20_000
WRITER = """
import sys, threading, time
from pathlib import Path
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.records import Consent, Feedback, Thumb
journal = JournalLog(Path(sys.argv[1]), segment_bytes=20_000, segment_s=0.05)
acknowledged = open(sys.argv[2], "ab", buffering=0)
slots = threading.Semaphore(16)
def note(name, durable):
    if durable.exception() is None:
        acknowledged.write(name.encode() + b"\\n")
    slots.release()
n = 0
while True:
    slots.acquire()
    name = f"{sys.argv[3]}-{n}"
    event = Feedback(feedback_id=name, turn_id="t", tenant="", user="", consent=Consent.TRAIN, thumb=Thumb.UP,
                     comment="x" * (n * 37 % 3000), given_at_s=0.0)
    journal.append(event).add_done_callback(lambda durable, name=name: note(name, durable))
    n += 1
    time.sleep(0.0005)
"""
READER = """
import json, os, sys
from pathlib import Path
from sdpo_ray.eventlog.journal.log import JournalLog
log, after = JournalLog(Path(sys.argv[1]), segment_bytes=1), {}
stored = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_APPEND)
whole = os.read(stored, 1 << 30).rpartition(b"\\n")[0]
os.ftruncate(stored, len(whole) + bool(whole))
for line in whole.splitlines():
    after |= json.loads(line)[0]
print("ready", flush=True)
while True:
    batch = log.poll(after, max_events=50, max_bytes=100_000)
    commit = [batch.positions, [each.feedback_id for each in batch.events]]
    os.write(stored, json.dumps(commit).encode() + b"\\n")
    after |= batch.positions
    log.truncate(after)
"""


def start(script: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    with process:
        assert process.wait(timeout=30) == -signal.SIGKILL


def lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(lines(path)) < count:
        assert time.monotonic() < deadline, f"{path} has {len(lines(path))} lines after a minute, not {count}"
        time.sleep(0.005)


class Reader:
    """Keeps positions and ids in memory, and checks the order within each partition."""

    def __init__(self, directory: Path) -> None:
        self.log = JournalLog(directory, segment_bytes=SEGMENT_BYTES)
        self.after: dict[str, int] = {}
        self.ids: list[str] = []

    def read(self) -> None:
        """Read to the end of every partition that exists now."""
        waiting = set(self.log.partitions())
        while waiting:
            batch = self.log.poll(self.after, max_events=50, max_bytes=50_000)
            self.after |= batch.positions
            self.ids += [each.feedback_id for each in batch.events]
            waiting -= batch.at_end
            waiting &= set(self.log.partitions())
        self.log.truncate(self.after)

    def assert_each_once_and_in_order(self) -> None:
        numbers: dict[str, list[int]] = {}
        for each in self.ids:
            writer, number = each.split("-")
            numbers.setdefault(writer, []).append(int(number))
        assert all(found == list(range(len(found))) for found in numbers.values())


def test_a_writer_killed_at_random_loses_no_acknowledged_event(tmp_path):
    acknowledged, when, reader = tmp_path / "acknowledged", random.Random(fresh_seed()), Reader(tmp_path / "journal")
    for attempt in range(KILLS):
        writer = start(WRITER, tmp_path / "journal", acknowledged, attempt)
        try:
            wait_for(acknowledged, len(lines(acknowledged)) + 1)
            until = time.monotonic() + when.uniform(0, 0.15)
            while time.monotonic() < until:
                reader.read()
        finally:
            kill(writer)
        reader.read()
        assert list((tmp_path / "journal").iterdir()) == []
    assert len(lines(acknowledged)) > 10 * KILLS
    assert set(lines(acknowledged)) <= set(reader.ids)
    reader.assert_each_once_and_in_order()
    assert len({each.split("-")[0] for each in reader.ids}) == KILLS


def test_a_reader_killed_at_random_reads_each_event_once(tmp_path):
    """Events and positions are one line of a file, as they are one commit of a table."""
    journal, stored, acknowledged = tmp_path / "journal", tmp_path / "stored", tmp_path / "acknowledged"
    when = random.Random(fresh_seed())
    writer = start(WRITER, journal, acknowledged, "w")
    try:
        for _ in range(KILLS):
            reader = start(READER, journal, stored)
            try:
                assert reader.stdout is not None
                assert reader.stdout.readline() == b"ready\n"
                time.sleep(when.uniform(0, 0.1))
            finally:
                kill(reader)
    finally:
        kill(writer)
    rest = Reader(journal)
    for line in lines(stored):
        positions, ids = json.loads(line)
        rest.after |= positions
        rest.ids += ids
    rest.read()
    assert len(lines(acknowledged)) > 10 * KILLS
    assert set(lines(acknowledged)) <= set(rest.ids)
    rest.assert_each_once_and_in_order()
    assert list(journal.iterdir()) == []
