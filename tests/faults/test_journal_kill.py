"""kill -9 at random moments: nothing acknowledged is lost, nothing is stored twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sdpo_ray.capture.segments import SegmentLog, segments
from sdpo_ray.curate.ship import ship
from sdpo_ray.curate.store import Table
from sdpo_ray.storage import Layout

KILLS = 20
WRITER = """
import sys, threading, time
from pathlib import Path
from conversations import turn
from sdpo_ray.capture.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
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
    journal.append(turn(name)).add_done_callback(lambda durable, name=name: note(name, durable))
    n += 1
    time.sleep(0.0005)
"""
SHIPPER = """
import sys
from pathlib import Path
from sdpo_ray.capture.segments import SegmentLog
from sdpo_ray.curate.ship import ship
from sdpo_ray.curate.store import Table
from sdpo_ray.storage import Layout
layout = Layout(Path(sys.argv[1]))
table, log = Table.turns(layout), SegmentLog(layout.journal)
print("ready", flush=True)
while True:
    ship(log, table)
"""


def start(script: str, *args: object) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    with process:
        assert process.wait(timeout=10) == -signal.SIGKILL


def lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(lines(path)) < count:
        assert time.monotonic() < deadline, f"{path} has {len(lines(path))} lines after a minute, not {count}"
        time.sleep(0.005)


def stored(layout: Layout) -> Counter[str]:
    return Counter(Table.turns(layout).read(["turn_id"])["turn_id"].to_pylist())


def test_a_writer_killed_at_random_loses_no_acknowledged_turn_and_none_is_stored_twice(tmp_path):
    layout, acknowledged, when = Layout(tmp_path), tmp_path / "acknowledged", random.Random(11)
    table, log = Table.turns(layout), SegmentLog(layout.journal)
    for attempt in range(KILLS):
        writer = start(WRITER, layout.journal, acknowledged, attempt)
        try:
            wait_for(acknowledged, len(lines(acknowledged)) + 1)
            time.sleep(when.uniform(0, 0.1))
        finally:
            kill(writer)
        ship(log, table)
    assert set(lines(acknowledged)) <= stored(layout).keys()
    assert set(stored(layout).values()) == {1}
    assert len({name.split("-")[0] for name in stored(layout)}) == KILLS
    assert [path for path in segments(layout.journal) if path.stat().st_size] == []


def test_a_shipper_killed_at_random_while_turns_come_in_loses_none_and_stores_none_twice(tmp_path):
    layout, acknowledged, when = Layout(tmp_path), tmp_path / "acknowledged", random.Random(12)
    writer = start(WRITER, layout.journal, acknowledged, "w")
    try:
        for _ in range(KILLS):
            shipper = start(SHIPPER, tmp_path)
            try:
                assert shipper.stdout is not None
                assert shipper.stdout.readline() == b"ready\n"
                time.sleep(when.uniform(0, 0.15))
            finally:
                kill(shipper)
    finally:
        kill(writer)
    ship(SegmentLog(layout.journal), Table.turns(layout))
    assert len(lines(acknowledged)) > KILLS
    assert set(lines(acknowledged)) <= stored(layout).keys()
    assert set(stored(layout).values()) == {1}
