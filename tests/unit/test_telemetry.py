"""The event file: what was written is read back, also while it grows."""

from pathlib import Path

import pytest

from sdpo_ray.errors import DataError
from sdpo_ray.records.run_events import Curated, StageFinished, StageStarted
from sdpo_ray.telemetry import EventFile, EventReader, read_events

CURATED = Curated(cycle=3, new_interactions=5, needed=8, turns=20, interactions=12, refused={"not_paired.expired": 2})


def test_events_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.jsonl")
    file.write(CURATED)
    with file.stage("draw", 3):
        pass
    curated, started, finished = read_events(tmp_path / "events.jsonl")
    assert curated == CURATED
    assert isinstance(started, StageStarted)
    assert isinstance(finished, StageFinished)
    assert (started.cycle, started.stage, finished.stage) == (3, "draw", "draw")


def test_a_line_has_the_name_of_its_event_and_its_fields_side_by_side(tmp_path: Path) -> None:
    EventFile(tmp_path / "events.jsonl").write(StageStarted(at_s=1.5, cycle=3, stage="draw"))
    line = (tmp_path / "events.jsonl").read_text()
    assert line == '{"name":"stage_started","at_s":1.5,"cycle":3,"stage":"draw"}\n'


def test_a_stage_that_raises_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), EventFile(tmp_path / "events.jsonl").stage("draw", 1):
        raise ValueError("broken")
    assert [type(event) for event in read_events(tmp_path / "events.jsonl")] == [StageStarted]


def test_a_reader_returns_each_event_once_and_a_torn_line_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read_new() == []
    EventFile(path).write(CURATED)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:20])
    assert reader.read_new() == [CURATED]
    assert reader.read_new() == []
    with path.open("ab") as file:
        file.write(whole[20:])
    assert reader.read_new() == [CURATED]


@pytest.mark.parametrize("line", ['{"name":"stage_started","cycle":1}', '{"name":"unknown","cycle":1}', "not json"])
def test_a_line_that_is_no_event_is_refused_with_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"events\.jsonl has a line that is no event"):
        read_events(tmp_path / "events.jsonl")
