"""Promotions under load: their effect on latency, failures and version consistency.

    PYTHONPATH=. python benchmarks/swap.py --json docs/results/swap.json

Sixteen clients, half of them streaming, send one request after the other. A round has two halves of equal length:
first without promotions, then with four, one every `--every` seconds. Answers end where the policy ends them, after
64 tokens at the latest. The time to the first token (TTFT) of a stream is from sending the request to the first piece
of text; its p99 is over all streams of the halves without promotions, and of the halves with them. Every response is
compared with its turn in the journal: one version in all spans, equal to the header's. `stall_s` is the longest time
that a swap held requests, `stall_median_by_phase_s` what the stalls were spent on (one replica alone), and
`share_of_time_held` the share of the time with promotions in which requests were held: at a constant load, the share of
requests that wait.

Few requests meet a promotion where promotions are rare, so the same p99 is also reported for the second after each
promotion alone (`near_ttft_p99_ratio`).

The default takes about six minutes: one replica, by whole weights and by adapter. `--long` adds two replicas and takes
five rounds instead of three: about 14 minutes.
"""

import argparse
import asyncio
import json
import tempfile
import time
from bisect import bisect
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvloop
from comparison import percentile
from progress import Steps
from prometheus_client.parser import text_string_to_metric_families
from report import as_markdown, commit, machine, show
from startup import RECIPE

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.cluster.local_cluster import LocalCluster, free_port
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import Run, load_run
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.headers import POLICY_VERSION, STALL_S, SWAP_ERROR, TURN_ID
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Fingerprint, Release, Turn

CLIENTS = 16
MAX_TOKENS = 64
NUM_POLICIES = 4
PROMPTS = (
    "What is the capital of France?",
    "Which river flows through Vienna?",
    "How many legs has a spider?",
    "What is 3 plus 4?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One request and its outcome."""

    sent_s: float
    """On the monotonic clock."""
    ttft_s: float | None
    """None for plain answers and for failures."""
    version: str
    turn_id: str
    error: str = ""


class Clients:
    """A constant load: each client sends its next request once the last is answered. All share one thread."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._stopped = False
        self._pool = ThreadPoolExecutor(1)
        self._replies = self._pool.submit(lambda: uvloop.run(self._run_all()))

    def end(self) -> list[Reply]:
        """Stop after the answers under way; the replies to all requests."""
        self._stopped = True
        return self._replies.result()

    async def _run_all(self) -> list[Reply]:
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            replies = await asyncio.gather(*(self._run(session, client) for client in range(CLIENTS)))
        return [reply for each in replies for reply in each]

    async def _run(self, session: aiohttp.ClientSession, client: int) -> list[Reply]:
        replies: list[Reply] = []
        while not self._stopped:
            replies.append(await self._send(session, client, len(replies)))
        return replies

    async def _send(self, session: aiohttp.ClientSession, client: int, number: int) -> Reply:
        stream = client % 2 == 0
        body = {
            "model": "policy",
            "messages": [{"role": "user", "content": PROMPTS[(client + number) % len(PROMPTS)]}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "stream": stream,
        }
        sent, first, parts = time.monotonic(), None, []
        try:
            async with session.post(self._url, data=json.dumps(body)) as reply:
                async for part in reply.content.iter_any():
                    if stream and first is None and b'"content":' in part.replace(b'"content":""', b""):
                        first = time.monotonic() - sent
                    parts.append(part)
        except aiohttp.ClientError as problem:
            return Reply(sent_s=sent, ttft_s=None, version="", turn_id="", error=repr(problem))
        whole = parts and (not stream or parts[-1].endswith(b"data: [DONE]\n\n"))
        error = "" if reply.status == 200 and whole else f"{reply.status}: {b''.join(parts)[-300:]!r}"
        version, turn_id = reply.headers.get(POLICY_VERSION, ""), reply.headers.get(TURN_ID, "")
        return Reply(sent_s=sent, ttft_s=first, version=version, turn_id=turn_id, error=error)


def policies(run: Run, folder: Path, *, adapters: bool) -> list[Release]:
    """`NUM_POLICIES` releases to promote, from the version after the base on."""
    import torch
    from safetensors.torch import load_file

    from sdpo_ray.config.distill import LoraConfig
    from sdpo_ray.distill.model import lora_adapter
    from sdpo_ray.distill.model.load import load_policy
    from sdpo_ray.distill.train.export import export
    from sdpo_ray.io.adapter_config import ADAPTER
    from sdpo_ray.records import Candidate

    token_ids = ChatFormat(run.base).text_ids(FINGERPRINT_TEXT)
    config = LoraConfig(rank=8 if adapters else 0, alpha=16)
    made = []
    for version in range(BASE_VERSION + 1, BASE_VERSION + NUM_POLICIES + 1):
        generator = torch.Generator().manual_seed(version)
        if adapters:
            model = load_policy(run.base)
            lora_adapter.inject(model, config, parent=run.base, base=run.base, seed=version)
            found = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
        else:
            found = load_file(run.base / "model.safetensors")
        trained = {name: each + 0.01 * torch.randn(each.shape, generator=generator) for name, each in found.items()}
        candidate = Candidate(
            policy_version=version,
            parent_version=BASE_VERSION,
            path=str(folder / f"v{version}"),
            snapshot_id="",
            fingerprint=Fingerprint(token_ids=token_ids, logprobs=()),
        )
        candidate = export(candidate, trained, parent=run.base, base=run.base, lora=config, teacher=None)
        made.append(
            Release(
                policy_version=version,
                path=candidate.path,
                previous_version=BASE_VERSION,
                fingerprint=candidate.fingerprint,
                adapter=f"{candidate.path}/{ADAPTER}" if adapters else "",
                digests=candidate.digests,
            )
        )
    return made


def promote(url: str, layout: Layout, release: Release, *, replicas: int) -> float:
    """Move the release pointer and wait until every replica serves it; the longest stall that a replica reports.

    Raises RuntimeError where a replica refuses it, or does not serve it within a minute.
    """
    write_json(layout.release_pointer, release)
    in_a_row, stall = 0, 0.0
    deadline = time.monotonic() + 60
    with httpx.Client(timeout=30) as client:
        while in_a_row < 4 * replicas:
            time.sleep(0.05)
            head = client.get(f"{url}/health").headers
            if SWAP_ERROR in head or time.monotonic() > deadline:
                raise RuntimeError(f"v{release.policy_version}: {head.get(SWAP_ERROR, 'not served')}")
            served = head.get(POLICY_VERSION) == str(release.policy_version)
            in_a_row = in_a_row + 1 if served else 0
            stall = max(stall, float(head[STALL_S])) if served else stall
    return stall


def stall_phases(url: str) -> dict[str, float]:
    """Seconds of the last stall by phase, from the metrics of the one replica."""
    samples = (
        sample
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
        for sample in family.samples
        if sample.name == "sdpo_swap_stall_phase_seconds"
    )
    return {sample.labels["phase"]: sample.value for sample in samples}


def mixed(layout: Layout, run: Run, replies: Sequence[Reply]) -> int:
    """Number of responses whose turn names several versions, or another than the header."""
    events = open_log(layout, run.capture).poll({}, max_events=1 << 30, max_bytes=1 << 40).events
    turns = {event.turn_id: event for event in events if isinstance(event, Turn)}
    wrong = 0
    for reply in replies:
        if not reply.error:
            versions = {str(span.policy_version) for span in turns[reply.turn_id].version_spans}
            wrong += versions != {reply.version}
    return wrong


def measure(name: str, mode: str, replicas: int, arguments: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Figures of one deployment under load."""
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        port = free_port()
        overrides = [f"root={folder}/run", f"serve.port={port}", f"serve.num_replicas={replicas}"]
        if mode == "adapter":
            overrides += ['serve.swap="adapter"', "serve.adapters=2", "serve.max_lora_rank=8", "distill.lora.rank=8"]
        run = load_run(RECIPE, overrides)
        layout = run.layout
        releases = policies(run, Path(folder) / "candidates", adapters=mode == "adapter")
        with LocalCluster(num_cpus=4, log=log) as cluster:
            print(f"{name}: starting", flush=True)
            deploy(cluster.dashboard, run, RECIPE, overrides, only=("policy",))
            clients = Clients(run.serve.url)
            time.sleep(arguments.warm_up)
            began = time.monotonic()
            changes, promoted, stalls, phases = [], [], [], []
            with Steps(name, arguments.rounds * (1 + len(releases))) as steps:
                for _ in range(arguments.rounds):
                    time.sleep(arguments.every * len(releases))
                    steps.done("no promotions")
                    changes.append(time.monotonic())
                    for release in releases:
                        promoted.append(time.monotonic())
                        stalls.append(promote(run.serve.url, layout, release, replicas=replicas))
                        if replicas == 1:
                            phases.append(stall_phases(run.serve.url))
                        time.sleep(max(0.0, promoted[-1] + arguments.every - time.monotonic()))
                        steps.done(f"v{release.policy_version} promoted, stall {stalls[-1]:.3f} s")
                    changes.append(time.monotonic())
            replies = clients.end()
        streams = [(each.sent_s, each.ttft_s) for each in replies if each.ttft_s is not None]
        in_time = [(sent, ttft, bisect(changes, sent)) for sent, ttft in streams if began <= sent < changes[-1]]
        before = [ttft for _, ttft, half in in_time if half % 2 == 0]
        during = [ttft for _, ttft, half in in_time if half % 2 == 1]
        near = [ttft for sent, ttft, _ in in_time if any(0 <= sent - at < 1 for at in promoted)]
        p99 = percentile(before, 0.99)
        errors = [each.error for each in replies if each.error]
        for error in errors[:5]:
            print(f"failed: {error}", flush=True)
        return {
            "promotions": len(promoted),
            "requests": len(replies),
            "failed": len(errors),
            "mixed": mixed(layout, run, replies),
            "ttft_p99_ratio": percentile(during, 0.99) / p99,
            "stall_s": max(stalls),
            "stall_median_s": sorted(stalls)[len(stalls) // 2],
            "stall_median_by_phase_s": {
                name: sorted(each[name] for each in phases)[len(phases) // 2] for name in (phases[0] if phases else ())
            },
            "share_of_time_held": sum(stalls) / (arguments.every * len(stalls)),
            "near_ttft_p99_ratio": percentile(near, 0.99) / p99,
            "ttft_before_p50_s": percentile(before, 0.5),
            "ttft_before_p99_s": p99,
            "ttft_during_p50_s": percentile(during, 0.5),
            "ttft_during_p99_s": percentile(during, 0.99),
            "streams": {"before": len(before), "during": len(during), "near": len(near)},
            "requests_per_s": sum(began <= each.sent_s < changes[-1] for each in replies) / (changes[-1] - began),
            "every_s": arguments.every,
        }


def rows(figures: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table, its head first."""
    head = ("swap", "requests", "failed", "mixed", "TTFT p99 before", "during", "ratio", "near", "stall")
    found = [head]
    for name, each in figures.items():
        before, during = 1e3 * each["ttft_before_p99_s"], 1e3 * each["ttft_during_p99_s"]
        found.append(
            (
                name,
                str(each["requests"]),
                str(each["failed"]),
                str(each["mixed"]),
                f"{before:.0f} ms",
                f"{during:.0f} ms",
                f"{each['ttft_p99_ratio']:.2f}",
                f"{each['near_ttft_p99_ratio']:.2f}",
                f"{each['stall_s']:.3f} s",
            )
        )
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="two replicas besides one, and five rounds")
    parser.add_argument("--modes", nargs="+", choices=("in_place", "adapter"), default=("in_place", "adapter"))
    parser.add_argument("--replicas", nargs="+", type=int, choices=(1, 2), help="of the mode in_place")
    parser.add_argument("--rounds", type=int, help="each without promotions, then with four")
    parser.add_argument("--every", type=float, default=5, help="seconds from one promotion to the next")
    parser.add_argument("--warm-up", type=float, default=10)
    parser.add_argument("--disk", type=Path, help="directory for the journal; default: that of temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    arguments.replicas = arguments.replicas or ((1, 2) if arguments.long else (1,))
    arguments.rounds = arguments.rounds or (5 if arguments.long else 3)
    return arguments


def main() -> None:
    arguments = parse()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    print(f"Ray logs to {log}", flush=True)
    figures: dict[str, dict[str, Any]] = {}
    for mode in arguments.modes:
        for replicas in arguments.replicas if mode == "in_place" else (1,):
            name = f"{mode}, {replicas}"
            figures[name] = measure(name, mode, replicas, arguments, log)
            print(name, json.dumps(figures[name]), flush=True)
    print(as_markdown(rows(figures)), flush=True)
    show(rows(figures))
    if arguments.json:
        record: dict[str, Any] = dict(figures.get("in_place, 1", {}))
        record |= {"two_replicas": figures.get("in_place, 2"), "adapter": figures.get("adapter, 1")}
        record |= {"machine": machine("cpu"), "commit": commit(), "clients": CLIENTS, "max_tokens": MAX_TOKENS}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
