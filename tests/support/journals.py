"""Journals on disk that tests write and read."""

from pathlib import Path

from sdpo_ray.eventlog.journal.log import JournalLog
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


def write(directory: Path, *events: Event, segment_bytes: int = MIB) -> None:
    """Write `events` one after the other with a journal of their own."""
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
