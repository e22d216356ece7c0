"""Several servers under the same loads, measured in turns, and the ratios between them."""

import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from clients import Load, LoadResult
from progress import Steps
from servers import Server

TOKENS = 32
SETTLE_S = 0.3
BARE, TUNED, OURS = "vllm serve", "tuned", "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One server under one load, once."""

    result: LoadResult
    cpu_s: dict[str, float]
    """CPU seconds by part of the server."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.result.latencies_s) / self.result.elapsed_s


@dataclass(frozen=True, slots=True)
class Target:
    """One column of the table: a server, and how requests reach it."""

    server: Server
    url: str
    headers: dict[str, str]
    beside: Server | None = None
    """An idle server that keeps running during the measurement."""


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def key(stream: bool, clients: int) -> str:
    return f"{'stream' if stream else 'plain'}_{clients}"


def measure(target: Target, *, clients: int, requests: int, stream: bool) -> Measurement:
    """Run `clients.py` against the target. Raises RuntimeError where a client failed."""
    load = Load(
        url=target.url, clients=clients, requests=requests, stream=stream, tokens=TOKENS, headers=target.headers
    )
    command = [sys.executable, str(Path(__file__).with_name("clients.py")), msgspec.json.encode(load).decode()]
    before = target.server.cpu_s()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    after = target.server.cpu_s()
    result = msgspec.json.decode(done.stdout, type=LoadResult)
    return Measurement(result=result, cpu_s={part: used - before.get(part, 0.0) for part, used in after.items()})


class Comparison:
    """All measurements of one model."""

    def __init__(self, name: str, targets: dict[str, Target], *, clients: Iterable[int]) -> None:
        self._name = name
        self._targets = targets
        self.loads = [(stream, number) for number in clients for stream in (False, True)]
        self.found: dict[tuple[str, bool, int], list[Measurement]] = defaultdict(list)

    def run(self, *, rounds: int, seconds: float) -> None:
        """Measure every target under every load once a round, in alternating order, for about `seconds` each."""
        per_round = len(self.loads) * len(self._targets)
        with Steps(f"{self._name}: warm-up", per_round) as steps:
            requests = {load: self._calibrate(*load, seconds, steps) for load in self.loads}
        with Steps(self._name, rounds * per_round) as steps:
            for number in range(rounds):
                for stream, clients in self.loads:
                    for name in list(self._targets) if number % 2 == 0 else list(reversed(self._targets)):
                        measurement = self._measure_alone(name, stream, clients, requests[stream, clients])
                        self.found[name, stream, clients].append(measurement)
                        steps.done(f"{key(stream, clients)}, {name}: {measurement.rate:.1f} requests/s")

    def _calibrate(self, stream: bool, clients: int, seconds: float, steps: Steps) -> int:
        """Requests a client for a measurement of about so many seconds. Warms every server up."""
        rates = []
        for name in self._targets:
            rates.append(self._measure_alone(name, stream, clients, requests=2).rate)
            steps.done(f"{key(stream, clients)}, {name}")
        return max(2, math.ceil(seconds * rates[0] / clients))

    def _measure_alone(self, name: str, stream: bool, clients: int, requests: int) -> Measurement:
        """Measure one target while the other servers are stopped (SIGSTOP)."""
        target = self._targets[name]
        others = {each.server for each in self._targets.values()} - {target.server, target.beside}
        with ExitStack() as stack:
            for other in others:
                stack.enter_context(other.stopped())
            time.sleep(SETTLE_S)
            return measure(target, clients=clients, requests=requests, stream=stream)

    def throughput(self, name: str, base: str, stream: bool, clients: int) -> float:
        """Throughput over that of `base`: the median over rounds."""
        pairs = zip(self.found[name, stream, clients], self.found[base, stream, clients], strict=True)
        return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)

    def ttft(self, name: str, base: str, stream: bool, clients: int) -> float:
        """Median time to the first token over that of `base`: the median over rounds."""
        pairs = zip(self.found[name, stream, clients], self.found[base, stream, clients], strict=True)
        return statistics.median(
            statistics.median(mine.result.ttfts_s) / statistics.median(theirs.result.ttfts_s) for mine, theirs in pairs
        )

    def p99_s(self, name: str, stream: bool, clients: int) -> float:
        """99th percentile of the latencies of all rounds."""
        return percentile((s for each in self.found[name, stream, clients] for s in each.result.latencies_s), 0.99)

    def receipts(self, name: str) -> float:
        """Share of answers that named a turn on disk."""
        mine = [each.result for (one, _, _), found in self.found.items() if one == name for each in found]
        return sum(each.receipts for each in mine) / sum(len(each.latencies_s) for each in mine)

    def figures(self) -> dict[str, Any]:
        """The JSON record of one model: ratios to `vllm serve`, and under `tuned` to that."""
        return self._ratios(BARE) | {
            TUNED: self._ratios(TUNED),
            "receipts": self.receipts(OURS),
            "ways": {name: self._columns(name) for name in self._targets},
        }

    def _ratios(self, base: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for stream, clients in self.loads:
            found[key(stream, clients)] = self.throughput(OURS, base, stream, clients)
            p99 = self.p99_s(OURS, stream, clients) / self.p99_s(base, stream, clients)
            found[f"p99_stream_{clients}" if stream else f"p99_{clients}"] = p99
            if stream:
                found[f"ttft_{clients}"] = self.ttft(OURS, base, stream, clients)
        return found

    def _columns(self, name: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for stream, clients in self.loads:
            found = self.found[name, stream, clients]
            latencies = [s for each in found for s in each.result.latencies_s]
            columns[key(stream, clients)] = {
                "requests_per_s": statistics.median(each.rate for each in found),
                "p50_ms": 1e3 * percentile(latencies, 0.5),
                "p99_ms": 1e3 * self.p99_s(name, stream, clients),
                "cpu_ms": self._cpu_ms(name, stream, clients),
                "clients_cpu_ms": 1e3 * sum(each.result.cpu_s for each in found) / len(latencies),
            } | ({"ttft_ms": 1e3 * statistics.median(t for e in found for t in e.result.ttfts_s)} if stream else {})
        return columns

    def _cpu_ms(self, name: str, stream: bool, clients: int) -> dict[str, float]:
        """CPU milliseconds a request, by part of the server."""
        found = self.found[name, stream, clients]
        requests = sum(len(each.result.latencies_s) for each in found)
        parts = sorted({part for each in found for part in each.cpu_s})
        return {part: 1e3 * sum(each.cpu_s.get(part, 0.0) for each in found) / requests for part in parts}

    def rows(self) -> list[tuple[str, ...]]:
        """The table, its head first."""
        rows: list[tuple[str, ...]] = [
            ("load", "way", "req/s", "of vllm serve", "of tuned", "p50 ms", "p99 ms", "TTFT ms", "CPU ms/request")
        ]
        for stream, clients in self.loads:
            for name in self._targets:
                cell = self._columns(name)[key(stream, clients)]
                used = ", ".join(f"{part} {ms:.1f}" for part, ms in cell["cpu_ms"].items() if ms >= 0.05)
                rows.append(
                    (
                        key(stream, clients),
                        name,
                        f"{cell['requests_per_s']:.1f}",
                        f"{self.throughput(name, BARE, stream, clients):.3f}",
                        f"{self.throughput(name, TUNED, stream, clients):.3f}",
                        f"{cell['p50_ms']:.0f}",
                        f"{cell['p99_ms']:.0f}",
                        f"{cell['ttft_ms']:.0f}" if stream else "",
                        used,
                    )
                )
        return rows
