"""Durable turns a second of one replica, against the rate of the disk. `benchmarks/capture.py` runs it.

Ours is the journal under an event loop that has 64 turns of 3 kB in flight, as a replica does: encoded, framed, synced,
acknowledged. Two others alternate with it, many times, since a disk's rate changes from one second to the next:

group commit    the disk's own rate with as many clients in flight: the least that can serve them, bytes in a queue, one
                write, one sync, their futures; no format, no segments, no bound, nothing that can be read back
disk alone      a loop that writes and syncs as many bytes in the same groups that ours formed, into files allocated in
                advance like ours; nothing is encoded, framed, waited for or acknowledged, and there are no clients

The figures are medians over the rounds.
"""

import asyncio
import os
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sdpo_ray.capture.future_bridge import settled
from sdpo_ray.eventlog.codec import encode
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.records import Consent, FinishReason, Message, Role, Sampling, Turn, VersionSpan

SEGMENT_BYTES = 16 << 20
IN_FLIGHT = 64
WORDS = ("plain", "answers", "about", "the", "weather", "in", "Paris", "and", "what", "people", "say", "of", "it")


@dataclass(frozen=True, slots=True)
class Round:
    """Rates of ours and of the two others."""

    turns_per_s: float
    disk_turns_per_s: float
    bare_turns_per_s: float
    group: float
    """Mean number of turns that shared a sync."""
    p50_ms: float
    p99_ms: float
    """Percentiles of the time from the append to the acknowledgement."""


def turns(number: int) -> list[Turn]:
    """`number` turns of about 3 kB each in the log."""
    chance = random.Random(1)

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    def ids(number: int) -> tuple[int, ...]:
        return tuple(chance.randrange(150_000) for _ in range(number))

    return [
        Turn(
            turn_id=f"chatcmpl-{n:032x}",
            tenant="default",
            user=f"k1.{chance.getrandbits(128):032x}",
            conversation_id="",
            consent=Consent.TRAIN,
            messages=(
                Message(role=Role.USER, content=text(30)),
                Message(role=Role.ASSISTANT, content=text(60)),
                Message(role=Role.USER, content=text(10)),
            ),
            response=text(80),
            prompt_ids=ids(140),
            response_ids=ids(80),
            response_logprobs=tuple(-chance.random() for _ in range(80)),
            version_spans=(VersionSpan(policy_version=1, start=0, end=80),),
            finish_reason=FinishReason.STOP,
            sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=512, seed=None),
            started_at_s=1.7e9,
            finished_at_s=1.7e9 + 2,
        )
        for n in range(number)
    ]


class Groups:
    """The sizes of the groups that the journal writes at once, recorded on the way to its writer."""

    def __init__(self, journal: JournalLog) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._write = journal._writer.write
        journal._writer.write = self._record  # type: ignore[method-assign]

    def _record(self, payloads: Sequence[bytes]) -> None:
        self.sizes.append((len(payloads), sum(map(len, payloads))))
        self._write(payloads)


class Bare:
    """A group commit and nothing else."""

    def __init__(self, path: Path) -> None:
        self._queue: queue.SimpleQueue[tuple[bytes, Future[None]] | None] = queue.SimpleQueue()
        self._path = path
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def append(self, payload: bytes) -> "Future[None]":
        durable: Future[None] = Future()
        self._queue.put((payload, durable))
        return durable

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        with Files(self._path) as files:
            while (first := self._queue.get()) is not None:
                group = [first]
                with suppress(queue.Empty):
                    while (each := self._queue.get_nowait()) is not None:
                        group.append(each)
                files.write(b"".join([payload for payload, _ in group]))
                for _, durable in group:
                    durable.set_result(None)
                if each is None:
                    return


class Files:
    """Appends bytes to files that are allocated in advance, and syncs after each write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: list[Path] = []
        self._descriptor, self._end = -1, SEGMENT_BYTES

    def write(self, data: bytes | memoryview) -> None:
        if self._end + len(data) > SEGMENT_BYTES:
            self._close()
            self._paths.append(self._directory / f"{len(self._paths)}.bare")
            self._descriptor, self._end = os.open(self._paths[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL), 0
            os.posix_fallocate(self._descriptor, 0, SEGMENT_BYTES)
        os.pwrite(self._descriptor, data, self._end)
        os.fdatasync(self._descriptor)
        self._end += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for path in self._paths:
            path.unlink()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


async def clients(append: Callable[[int], "Future[None]"], seconds: float) -> tuple[float, list[float]]:
    """Turns a second, and the wait of each in ms. `append` takes the number of a turn."""
    waited: list[float] = []
    began = time.perf_counter()

    async def client(first: int) -> None:
        number = first
        while (sent := time.perf_counter()) < began + seconds:
            await settled(append(number))
            waited.append((time.perf_counter() - sent) * 1e3)
            number += IN_FLIGHT

    await asyncio.gather(*(client(first) for first in range(IN_FLIGHT)))
    return len(waited) / (time.perf_counter() - began), waited


def one_round(
    journal: JournalLog, groups: Groups, bare: Bare, files: Files, made: Sequence[Turn], seconds: float
) -> Round:
    payloads = [encode(each) for each in made]
    groups.sizes.clear()
    rate, waited = asyncio.run(clients(lambda number: journal.append(made[number % len(made)]), seconds))
    number = sum(each for each, _ in groups.sizes)
    waited.sort()

    data = memoryview(os.urandom(max(size for _, size in groups.sizes)))
    began = time.perf_counter()
    for _, size in groups.sizes:
        files.write(data[:size])
    disk_s = time.perf_counter() - began

    bare_rate, _ = asyncio.run(clients(lambda number: bare.append(payloads[number % len(payloads)]), seconds))
    return Round(
        turns_per_s=rate,
        disk_turns_per_s=number / disk_s,
        bare_turns_per_s=bare_rate,
        group=number / len(groups.sizes),
        p50_ms=waited[len(waited) // 2],
        p99_ms=waited[len(waited) * 99 // 100],
    )


def journal_figures(
    directory: Path, *, rounds: int, seconds: float, on_round: Callable[[float], None] = lambda turns_per_s: None
) -> dict[str, float]:
    """Figures of one journal through all rounds of `seconds` each; the first round is not counted."""
    made = turns(1000)
    for name in ("bare", "disk"):
        (directory / name).mkdir()
    journal, bare = JournalLog(directory / "journal", segment_bytes=SEGMENT_BYTES), Bare(directory / "bare")
    groups = Groups(journal)
    with Files(directory / "disk") as files:
        done = []
        for _ in range(rounds + 1):
            done.append(one_round(journal, groups, bare, files, made, seconds))
            on_round(done[-1].turns_per_s)
        del done[0]
    journal.close()
    bare.close()
    return {
        "turns_per_s": statistics.median(each.turns_per_s for each in done),
        "of_disk_rate": statistics.median(each.turns_per_s / each.bare_turns_per_s for each in done),
        "of_disk_alone": statistics.median(each.turns_per_s / each.disk_turns_per_s for each in done),
        "p50_ms": statistics.median(each.p50_ms for each in done),
        "p99_ms": statistics.median(each.p99_ms for each in done),
        "group_commit_turns_per_s": statistics.median(each.bare_turns_per_s for each in done),
        "disk_alone_turns_per_s": statistics.median(each.disk_turns_per_s for each in done),
        "turns_per_group": statistics.median(each.group for each in done),
        "turn_bytes": statistics.mean(len(encode(each)) for each in made),
    }
