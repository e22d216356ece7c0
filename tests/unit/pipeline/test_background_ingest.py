"""Ingest while a cycle is under way."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import Run, load_run
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.pipeline.background_ingest import ingest_in_background
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import turn


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(LAPTOP, [f"root={tmp_path / 'run'}"])


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_turns_reach_the_table_while_a_cycle_is_under_way(run: Run):
    layout = run.layout
    replica, table = open_log(layout, run.capture), Table.turns(layout)

    def num_stored() -> int:
        table.refresh()
        return table.num_rows

    with ingest_in_background(run, every_s=0.01):
        for number in (1, 2):
            replica.append(turn(f"t{number}", f"question {number}")).result()
            wait_for(lambda number=number: num_stored() == number)
    replica.append(turn("t3", "after the cycle")).result()
    assert num_stored() == 2
    replica.close()


def test_a_failure_is_printed_once_and_does_not_end_the_cycle(run: Run, capsys: pytest.CaptureFixture[str]):
    layout = run.layout
    replica = open_log(layout, run.capture)
    for number in (1, 2):
        replica.append(turn(f"t{number}", f"question {number}")).result()
    replica.close()
    (segment,) = layout.journal.glob("*")
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)
    printed = ""

    def is_printed() -> bool:
        nonlocal printed
        printed += capsys.readouterr().err
        return "is not stored" in printed

    with ingest_in_background(run, every_s=0.01):
        wait_for(is_printed)
        time.sleep(0.2)
    printed += capsys.readouterr().err
    assert printed.count("the event log is not stored while the cycle goes on") == 1
