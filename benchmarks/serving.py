"""Bare `vllm serve` against ours with durable capture: same model, same limits, same clients, in turns in one run.

    PYTHONPATH=. python benchmarks/serving.py --json serving.json

Clients in a process of their own ask for answers of exactly 32 tokens, plain and streamed, 1, 8 and 32 at once. Each
round asks all servers in turn, in the opposite order of the round before. The others are stopped (SIGSTOP) meanwhile:
what Ray does when nobody asks is on our bill alone. Throughputs and times to the first token are compared within a
round, and the median of the ratios is reported; a p99 is over the answers of all rounds.

Bare vLLM is there twice. `vllm serve` is what somebody gets who types it. `tuned` has the executor and the settings of
our engine, which do more on a CPU: against it, all that is left is what our layers cost.

Layers are taken off one at a time: `direct` asks the replica past HAProxy, `unrecorded` asks without consent to be
recorded, and `tuned + Ray` is bare vLLM while our idle cluster is not stopped: what Ray's own processes take of a small
machine. Besides, the CPU time of each process for a request tells what a layer uses.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from clients import Heard, Load
from report import as_markdown, commit, machine, show
from servers import TINY, Server, bare, make_policy, ours

TOKENS = 32
SETTLE_S = 0.3
CLIENTS = (1, 8, 32)
BARE, TUNED, OURS = "vllm serve", "tuned", "ours"
NO_CONSENT = {"x-sdpo-consent": "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One server under one load, once."""

    heard: Heard
    cpu_s: dict[str, float]

    @property
    def rate(self) -> float:
        return len(self.heard.latencies_s) / self.heard.elapsed_s


@dataclass(frozen=True, slots=True)
class Way:
    """One server as one column of the table asks it."""

    server: Server
    url: str
    headers: dict[str, str]
    beside: Server | None = None
    """One that is not stopped meanwhile, though nobody asks it."""


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def listen(way: Way, *, clients: int, requests: int, stream: bool) -> Turn:
    load = Load(url=way.url, clients=clients, requests=requests, stream=stream, tokens=TOKENS, headers=way.headers)
    command = [sys.executable, str(Path(__file__).with_name("clients.py")), msgspec.json.encode(load).decode()]
    before = way.server.cpu_s()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    after = way.server.cpu_s()
    heard = msgspec.json.decode(done.stdout, type=Heard)
    return Turn(heard=heard, cpu_s={part: used - before.get(part, 0.0) for part, used in after.items()})


class Comparison:
    """All turns on one model."""

    def __init__(self, ways: dict[str, Way], *, clients: Iterable[int], seconds: float) -> None:
        self._ways = ways
        self.loads = [(stream, number) for number in clients for stream in (False, True)]
        self._requests = {load: self._calibrated(*load, seconds) for load in self.loads}
        self.turns: dict[tuple[str, bool, int], list[Turn]] = defaultdict(list)

    def _calibrated(self, stream: bool, clients: int, seconds: float) -> int:
        """Requests of a client in a turn of about so many seconds. Warms every server up."""
        turns = [self._alone(name, stream, clients, requests=2) for name in self._ways]
        return max(2, math.ceil(seconds * turns[0].rate / clients))

    def _alone(self, name: str, stream: bool, clients: int, requests: int) -> Turn:
        """A turn of one server, while the others are stopped."""
        way = self._ways[name]
        others = {each.server for each in self._ways.values()} - {way.server, way.beside}
        with ExitStack() as stack:
            for other in others:
                stack.enter_context(other.stopped())
            time.sleep(SETTLE_S)
            return listen(way, clients=clients, requests=requests, stream=stream)

    def go(self, rounds: int, say: Callable[[str], None]) -> None:
        for number in range(rounds):
            for stream, clients in self.loads:
                order = list(self._ways) if number % 2 == 0 else list(reversed(self._ways))
                for name in order:
                    requests = self._requests[stream, clients]
                    self.turns[name, stream, clients].append(self._alone(name, stream, clients, requests))
            ratios = ", ".join(f"{key(s, c)} {self.throughput(OURS, BARE, s, c):.3f}" for s, c in self.loads)
            say(f"round {number + 1}: ours over vllm serve so far {ratios}")

    def throughput(self, name: str, base: str, stream: bool, clients: int) -> float:
        """Of `name` over that of `base`, the median over rounds."""
        pairs = zip(self.turns[name, stream, clients], self.turns[base, stream, clients], strict=True)
        return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)

    def ttft(self, name: str, base: str, stream: bool, clients: int) -> float:
        """Median time to the first token over that of `base`, the median over rounds."""
        pairs = zip(self.turns[name, stream, clients], self.turns[base, stream, clients], strict=True)
        return statistics.median(
            statistics.median(mine.heard.ttfts_s) / statistics.median(theirs.heard.ttfts_s) for mine, theirs in pairs
        )

    def p99(self, name: str, base: str, stream: bool, clients: int) -> float:
        """Of the latencies of all rounds over that of `base`."""
        return self.p99_s(name, stream, clients) / self.p99_s(base, stream, clients)

    def p99_s(self, name: str, stream: bool, clients: int) -> float:
        return percentile((s for turn in self.turns[name, stream, clients] for s in turn.heard.latencies_s), 0.99)

    def cpu_ms(self, name: str, stream: bool, clients: int) -> dict[str, float]:
        """CPU milliseconds for a request, by part of the server."""
        turns = self.turns[name, stream, clients]
        requests = sum(len(turn.heard.latencies_s) for turn in turns)
        parts = sorted({part for turn in turns for part in turn.cpu_s})
        return {part: 1e3 * sum(turn.cpu_s.get(part, 0.0) for turn in turns) / requests for part in parts}

    def receipts(self, name: str) -> float:
        """Share of answers that named a turn on disk."""
        turns = [turn for (one, _, _), each in self.turns.items() if one == name for turn in each]
        return sum(turn.heard.receipts for turn in turns) / sum(len(turn.heard.latencies_s) for turn in turns)

    def figures(self) -> dict[str, Any]:
        """What `--json` writes for one model: ratios to `vllm serve`, and under `tuned` to that."""
        return self._ratios(BARE) | {
            TUNED: self._ratios(TUNED),
            "receipts": self.receipts(OURS),
            "ways": {name: self._columns(name) for name in self._ways},
        }

    def _ratios(self, base: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for stream, clients in self.loads:
            found[key(stream, clients)] = self.throughput(OURS, base, stream, clients)
            found[f"p99_stream_{clients}" if stream else f"p99_{clients}"] = self.p99(OURS, base, stream, clients)
            if stream:
                found[f"ttft_{clients}"] = self.ttft(OURS, base, stream, clients)
        return found

    def _columns(self, name: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for stream, clients in self.loads:
            turns = self.turns[name, stream, clients]
            latencies = [s for turn in turns for s in turn.heard.latencies_s]
            columns[key(stream, clients)] = {
                "requests_per_s": statistics.median(turn.rate for turn in turns),
                "p50_ms": 1e3 * percentile(latencies, 0.5),
                "p99_ms": 1e3 * self.p99_s(name, stream, clients),
                "cpu_ms": self.cpu_ms(name, stream, clients),
                "clients_cpu_ms": 1e3 * sum(turn.heard.cpu_s for turn in turns) / len(latencies),
            } | ({"ttft_ms": 1e3 * statistics.median(t for u in turns for t in u.heard.ttfts_s)} if stream else {})
        return columns

    def rows(self) -> list[tuple[str, ...]]:
        """The table, its head first."""
        rows = [("load", "way", "req/s", "of vllm serve", "of tuned", "p50 ms", "p99 ms", "TTFT ms", "CPU ms/request")]
        for stream, clients in self.loads:
            for name in self._ways:
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


def key(stream: bool, clients: int) -> str:
    return f"{'stream' if stream else 'plain'}_{clients}"


def compare(model: Path, arguments: argparse.Namespace, log: Path, say: Callable[[str], None]) -> Comparison:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.disk)))
        theirs = stack.enter_context(bare(model, log, tuned=False))
        tuned = stack.enter_context(bare(model, log, tuned=True))
        mine = stack.enter_context(ours(model, log, root))
        ways = {BARE: Way(theirs, theirs.url, {}), TUNED: Way(tuned, tuned.url, {}), OURS: Way(mine, mine.url, {})}
        if not arguments.quick:
            ways["direct"] = Way(mine, mine.replica_url(), {})
            ways["unrecorded"] = Way(mine, mine.url, NO_CONSENT)
            ways["tuned + Ray"] = Way(tuned, tuned.url, {}, beside=mine)
        say("all servers answer")
        found = Comparison(ways, clients=(8,) if arguments.quick else CLIENTS, seconds=arguments.seconds)
        found.go(arguments.rounds, say)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("tiny", "50m"), default=("tiny", "50m"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="about how long a turn takes")
    parser.add_argument("--quick", action="store_true", help="8 clients alone, and none of the layers")
    parser.add_argument("--disk", type=Path, help="directory for the journal; default: that of temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    print(f"the servers' words are in {log}", flush=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.models:
            model = TINY if name == "tiny" else make_policy(Path(directory) / name)
            found = compare(model, arguments, log, lambda words, name=name: print(f"{name}: {words}", flush=True))
            figures[name] = found.figures()
            print(as_markdown(found.rows()) if arguments.json else "", flush=True)
            show(found.rows())
    if arguments.json:
        figures |= {"machine": machine("cpu"), "commit": commit(), "rounds": arguments.rounds, "tokens": TOKENS}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
