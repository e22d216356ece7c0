"""A disk that is full, read-only or broken: answers go on without receipts, and nothing that had one is lost."""

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.headers import TURN_ID
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Turn
from serve.api.response import NOT_STORED
from tests.faults.crash import REPOSITORY, SEGMENT_BYTES
from tests.faults.small_disk import SmallDisk, small_disk
from tests.support.conversations import turn
from tests.support.recorded_engine import client_of, recorder_of, text_of


class Disk(Protocol):
    """A directory whose disk can be broken and repaired."""

    path: Path

    def fail(self) -> None: ...

    def mend(self) -> None: ...


class Full:
    def __init__(self, disk: SmallDisk) -> None:
        self._disk, self.path = disk, disk.path

    def fail(self) -> None:
        self._disk.fill()

    def mend(self) -> None:
        self._disk.free()


class ReadOnly:
    def __init__(self, disk: SmallDisk) -> None:
        self._disk, self.path = disk, disk.path

    def fail(self) -> None:
        self._disk.remount("ro")

    def mend(self) -> None:
        self._disk.remount("rw")


class Faked:
    """A disk on which one system call fails in the journal's thread."""

    def __init__(self, path: Path, call: str, number: int, patch: pytest.MonkeyPatch) -> None:
        self.path, self._call, self._number, self._patch = path, call, number, patch

    def fail(self) -> None:
        real: Callable[..., Any] = getattr(os, self._call)

        def failing(*args: Any, **options: Any) -> Any:
            if self._call == "open" and str(self.path) not in str(args[0]):
                return real(*args, **options)
            raise OSError(self._number, os.strerror(self._number))

        self._patch.setattr(f"sdpo_ray.eventlog.journal.writer.os.{self._call}", failing)

    def mend(self) -> None:
        self._patch.undo()


FAKES = {
    "full, found while room is allocated": ("posix_fallocate", errno.ENOSPC),
    "full, found while a frame is written": ("pwrite", errno.ENOSPC),
    "over its quota": ("pwrite", errno.EDQUOT),
    "read-only": ("open", errno.EROFS),
    "broken, found while it is synced": ("fdatasync", errno.EIO),
}


@pytest.fixture(params=["full", "read-only", *(f"faked: {name}" for name in FAKES)])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if (name := request.param.removeprefix("faked: ")) in FAKES and name != request.param:
        yield Faked(tmp_path, *FAKES[name], monkeypatch)
        return
    with small_disk(tmp_path / "disk", mib=2) as small:
        yield Full(small) if name == "full" else ReadOnly(small)


def test_service_continues_without_receipts_and_records_again_by_itself(disk: Disk, tmp_path: Path):
    asyncio.run(talk(disk, tmp_path))


async def talk(disk: Disk, tmp_path: Path) -> None:
    log = JournalLog(disk.path / "journal", segment_bytes=SEGMENT_BYTES, segment_s=0.2)
    recorder = recorder_of(tmp_path, log)
    async with client_of(recorder, repeat) as client:
        receipts = [await ask(client, f"before {n}", stream=n % 2 == 0) for n in range(4)]
        assert all(receipts)

        disk.fail()
        # Room that was allocated earlier is used up first.
        while (receipt := await ask(client, "while it fails " + "x" * 2000, stream=True)) is not None:
            receipts.append(receipt)
            assert len(receipts) < 100
        unrecorded = [await ask(client, f"while it fails {n}", stream=n % 2 == 0) for n in range(8)]
        assert unrecorded == [None] * 8
        assert recorder.counters.values["not_recorded.OSError"] == 9
        assert not recorder.healthy

        disk.mend()
        receipts += [await ask(client, f"after {n}", stream=False) for n in range(4)]
        assert recorder.healthy
    log.close()

    assert all(receipts)
    assert recorder.counters.values["recorded"] == len(receipts)
    events = JournalLog(disk.path / "journal", segment_bytes=SEGMENT_BYTES).poll({}, max_events=1000, max_bytes=1 << 30)
    stored = [event.turn_id for event in events.events if isinstance(event, Turn)]
    assert [turn_id for turn_id in stored if turn_id in set(receipts)] == receipts
    assert len(stored) == len(set(stored))


def repeat(body: Mapping[str, Any]) -> str:
    return f"So you say: {body['messages'][-1]['content']}"


async def ask(client: httpx.AsyncClient, text: str, *, stream: bool) -> str | None:
    """The turn's id if there is a receipt. There is an answer in any case."""
    body = {"messages": [{"role": "user", "content": text}], "stream": stream}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert text_of(reply) == f"So you say: {text}"
    return None if NOT_STORED.decode() in reply.text else reply.headers.get(TURN_ID)


def test_a_committer_on_a_full_disk_loses_nothing_and_continues_when_there_is_room(tmp_path: Path):
    """Tried without any room, and with room that ends in the middle of a data file."""
    with small_disk(tmp_path / "disk", mib=8) as disk, stepwise(tmp_path, disk) as step:
        journal_at = Layout(tmp_path).journal
        journal = JournalLog(journal_at, segment_bytes=SEGMENT_BYTES)
        expected = write(journal_at, "early", 3)
        assert step("ship") == {"done": 3}
        for room in (0, 300_000):
            expected += write(journal_at, f"room {room}", 100)
            held = journal.backlog_bytes({})
            disk.fill(leave=room)
            assert "No space left" in step("ship")["error"]
            with stepwise(tmp_path, disk) as another:
                assert "No space left" in another("ship")["error"]
            assert journal.backlog_bytes({}) == held
            disk.free()
            assert step("ship") == {"done": 100}
            assert journal.partitions() == []
        assert step("ship") == {"done": 0}
        assert sorted(step("stored")["done"]) == sorted(expected)
        files = step("purge")["done"]
        assert sorted(disk.path.glob("tables/turns/*.parquet*")) == sorted(map(disk.seen, files))
        assert sorted(step("stored")["done"]) == sorted(expected)


@contextmanager
def stepwise(root: Path, disk: SmallDisk) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A committer whose tables are on `disk`; the journal is not."""
    command = [sys.executable, "-m", "tests.faults.stepping_committer", str(root), str(disk.mounted / "tables")]
    with subprocess.Popen(
        disk.inside(command), cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def step(what: str) -> dict[str, Any]:
            print(what, file=process.stdin, flush=True)
            said: dict[str, Any] = json.loads(process.stdout.readline())
            return said

        yield step
        process.stdin.close()


def write(directory: Path, name: str, number: int) -> list[str]:
    """Write turns of 20 kB that do not compress, durable and sealed. Returns their ids."""
    journal = JournalLog(directory, segment_bytes=SEGMENT_BYTES)
    ids = [f"{name} {n}" for n in range(number)]
    for each in [journal.append(turn(turn_id, response=os.urandom(10_000).hex())) for turn_id in ids]:
        each.result()
    journal.close()
    return ids
