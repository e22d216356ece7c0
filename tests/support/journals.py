"""Event logs that tests write and read."""

from collections.abc import Iterable
from pathlib import Path

from sdpo_ray.config import CaptureConfig
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Event, Feedback, Thumb, Turn

MIB = 1 << 20


def feedback(name: str) -> Feedback:
    return Feedback(
        feedback_id=name,
        turn_id="t0",
        tenant="default",
        user="u",
        consent=Consent.TRAIN,
        thumb=Thumb.DOWN,
        given_at_s=7.0,
    )


def append_all(log: EventLog, events: Iterable[Event]) -> None:
    """Append the events and wait until all of them are durable."""
    for durable in [log.append(each) for each in events]:
        durable.result(timeout=30)


def record(layout: Layout, *events: Event) -> None:
    """Append the events to the run's journal, as one replica that starts and stops."""
    log = open_log(layout, CaptureConfig())
    append_all(log, events)
    log.close()


def write(directory: Path, *events: Event, segment_bytes: int = MIB) -> None:
    """Write the events one after the other, as one process."""
    journal = JournalLog(directory, segment_bytes=segment_bytes)
    for each in events:
        journal.append(each).result(timeout=10)
    journal.close()


def read_all(directory: Path, after: dict[str, int] | None = None) -> list[Event]:
    log = JournalLog(directory, segment_bytes=MIB)
    return list(log.poll(after or {}, max_events=10**9, max_bytes=10**12).events)


def ids(events: list[Event]) -> list[str]:
    return [each.turn_id for each in events if isinstance(each, Turn)]


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))
