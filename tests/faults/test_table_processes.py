"""Processes that commit, read, maintain and erase one table at once, some of them killed at random."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.faults.crash import REPOSITORY, fresh_seed
from tests.faults.repetitions import KILLS, SLOW
from tests.support.conversations import turn

pytestmark = pytest.mark.timeout(120 + 10 * KILLS)
SECONDS = 60.0 if SLOW else 8.0
COMMITTER = """
import sys
from pathlib import Path
from tests.support.conversations import turn
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import turns_to_arrow
table, log = Table.turns(Layout(Path(sys.argv[1]))), sys.argv[3]
acknowledged = open(sys.argv[2], "ab", buffering=0)
template = turns_to_arrow([turn("t", user="u"), turn("t", user="v")])
print("ready", flush=True)
while True:
    table.refresh()
    number = (table.position(log) or 0) + 1
    names = [f"{log}-{number:06d}-{half}" for half in "ab"]
    rows = turns_to_arrow([turn(name, "The zebra lives in the attic.") for name in names])
    if table.append(rows, {log: number}) is not None:
        table.sync()
        acknowledged.write("".join(f"{name}\\n" for name in names).encode())
"""
MAINTAINER = """
import sys
from pathlib import Path
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.io.paths import Layout
table = Table.turns(Layout(Path(sys.argv[1])))
print("ready", flush=True)
while True:
    table.refresh()
    if table.maintain(every=10, keep_files_h=0):
        print("maintained", flush=True)
"""
READER = """
import sys
from collections import Counter
from pathlib import Path
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.io.paths import Layout
table, after, seen = Table.turns(Layout(Path(sys.argv[1]))), 0, Counter()
print("ready", flush=True)
for line in sys.stdin:
    table.refresh()
    upto = table.batch
    seen.update(table.read(["turn_id"], after=after, upto=upto)["turn_id"].to_pylist())
    after = upto
    whole = Counter(table.read(["turn_id"], upto=upto)["turn_id"].to_pylist())
    print("same" if whole == seen else f"different: {len(whole)} {len(seen)}", flush=True)
"""


@contextmanager
def running(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.poll() is None, f"it ended by itself with {process.poll()}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        process.stdin.close()
        process.stdout.close()


def lines(path: Path) -> set[str]:
    return set(path.read_text().split("\n")[:-1]) if path.exists() else set()


def stored(layout: Layout) -> Counter[str]:
    return Counter(Table.turns(layout).read(["turn_id"])["turn_id"].to_pylist())


def test_a_committer_a_reader_and_a_maintainer_at_once_lose_and_repeat_nothing(tmp_path):
    layout, acknowledged = Layout(tmp_path), tmp_path / "acknowledged"
    Table.turns(layout)
    rounds = 0
    with (
        running(COMMITTER, tmp_path, acknowledged, "one"),
        running(MAINTAINER, tmp_path) as maintainer,
        running(READER, tmp_path) as reader,
    ):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or rounds < 3:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "same\n"
            rounds += 1
        assert maintainer.stdout is not None
        assert maintainer.stdout.readline() == "maintained\n"
    found = stored(layout)
    assert len(lines(acknowledged)) > 50
    assert lines(acknowledged) <= found.keys()
    assert set(found.values()) == {1}
    # A commit writes two rows, both or neither.
    assert all(f"{name[:-1]}a" in found and f"{name[:-1]}b" in found for name in found)


def test_committers_and_a_maintainer_killed_at_random_lose_and_repeat_nothing(tmp_path):
    layout, acknowledged, when = Layout(tmp_path), tmp_path / "acknowledged", random.Random(fresh_seed())
    table = Table.turns(layout)
    with running(COMMITTER, tmp_path, acknowledged, "one"):
        for kill in range(KILLS):
            script = (COMMITTER, tmp_path, acknowledged, "two") if kill % 2 else (MAINTAINER, tmp_path)
            with running(*script):
                time.sleep(when.uniform(0, 0.3))
    found = stored(layout)
    assert len(lines(acknowledged)) > KILLS
    assert lines(acknowledged) <= found.keys()
    assert set(found.values()) == {1}
    table.purge()
    assert stored(layout) == found
    # Files that killed processes wrote and did not commit are removed.
    directory = Path(layout.table("turns"))
    assert {str(path) for path in directory.iterdir()} == {*table.files(), str(directory / "_delta_log")}


def test_erasure_beside_a_committer_loses_nothing_and_leaves_no_byte(tmp_path):
    layout, acknowledged = Layout(tmp_path), tmp_path / "acknowledged"
    table = Table.turns(layout)
    victims = [f"victim-{number:03d}" for number in range(40)]
    for number in range(0, 40, 4):
        made = [turn(name, "My word is xylophone.") for name in victims[number : number + 4]]
        others = [turn(f"other-{each:03d}") for each in range(number, number + 4)]
        assert table.append(turns_to_arrow(made + others), {"before": number}) is not None
    with (
        running(COMMITTER, tmp_path, acknowledged, "one"),
        running(COMMITTER, tmp_path, acknowledged, "two"),
        running(MAINTAINER, tmp_path),
    ):
        while len(lines(acknowledged)) < 20:
            time.sleep(0.02)
        for number in range(0, 40, 10):
            assert table.delete(victims[number : number + 10]) == 10
            table.purge()
        came = len(lines(acknowledged))
        while len(lines(acknowledged)) < came + 20:
            time.sleep(0.02)
    table.purge()
    found = stored(layout)
    assert lines(acknowledged) <= found.keys()
    assert {f"other-{number:03d}" for number in range(40)} <= found.keys()
    assert set(found.values()) == {1}
    for path in Path(layout.table("turns")).rglob("*"):
        if path.is_file():
            decoded = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            for word in ("xylophone", "victim-"):
                assert word not in decoded
                assert word.encode() not in path.read_bytes()
