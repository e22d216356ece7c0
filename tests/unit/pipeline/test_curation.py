"""The alarm for a growing event log."""

from pathlib import Path

import msgspec
import pytest

from sdpo_ray.config import Run, parse_run
from sdpo_ray.pipeline.curation import BacklogAlarm
from sdpo_ray.records.run_events import BacklogChanged
from sdpo_ray.telemetry import EventFile, read_events


@pytest.fixture
def run() -> Run:
    return parse_run({"capture": {"journal": {"alarm_mib": 2}}})


def test_a_backlog_above_the_limit_is_reported_once_and_its_end_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alarm = BacklogAlarm(run, EventFile(tmp_path / "events.jsonl"))
    for mib in (1, 2, 3, 9, 2, 1):
        alarm.check(mib << 20, 7)
    assert [msgspec.structs.replace(each, at_s=0) for each in read_events(tmp_path / "events.jsonl")] == [
        BacklogChanged(at_s=0, cycle=7, mib=3, alarm_mib=2, above=True),
        BacklogChanged(at_s=0, cycle=7, mib=2, alarm_mib=2, above=False),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "the event log is above 2 MiB: 3 MiB",
        "the event log is back under 2 MiB: 2 MiB",
    ]
