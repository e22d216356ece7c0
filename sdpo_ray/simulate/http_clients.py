"""Simulated users who talk to a served policy over HTTP."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_ray.config import Run
from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from sdpo_ray.io.files import write_json
from sdpo_ray.simulate.users import Persona, persona_of, react
from sdpo_ray.simulate.world import sample_prompt


@dataclass(slots=True, kw_only=True)
class TrafficStats:
    """Counts of what the simulated users saw. Made by `talk_all`; read by `demo`."""

    requests: int = 0
    failed: int = 0
    receipts: int = 0
    conversations: int = 0
    errors: dict[str, int] = field(default_factory=Counter)
    first_seen_s: dict[str, float] = field(default_factory=dict)
    """Unix time of the first response of each policy version."""


class SimulatedClient:
    """Holds conversations one after the other, each as a random one of the simulated users."""

    def __init__(self, client: Any, run: Run, persona: Persona, rng: random.Random, traffic: TrafficStats) -> None:
        self._client = client
        self._run = run
        self._persona = persona
        self._rng = rng
        self._traffic = traffic

    async def talk(self) -> None:
        """Hold one conversation: a question, the answer, and the reaction to it."""
        user = f"person-{self._rng.randrange(self._run.simulate.people)}"
        messages = [{"role": "user", "content": sample_prompt(self._rng, "train").prompt}]
        answer = await self._send(user, messages)
        if answer is None:
            return
        await self._think()
        reaction = react(self._persona, answer, self._rng)
        reply = [{"role": "assistant", "content": answer}, {"role": "user", "content": reaction}]
        await self._send(user, messages + reply)
        self._traffic.conversations += 1
        await self._think()

    async def _think(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / self._run.simulate.think_s))

    async def _send(self, user: str, messages: list[dict[str, str]]) -> str | None:
        self._traffic.requests += 1
        stream = self._rng.random() < self._run.simulate.stream_share
        try:
            answer, headers = await self._answer(user, messages, stream)
        except Exception as error:
            # A user saw a failure, of whatever kind: it is counted, and the next conversation starts.
            self._traffic.failed += 1
            self._traffic.errors[f"{type(error).__name__}: {str(error)[:200]}"] += 1
            return None
        self._traffic.receipts += TURN_ID in headers
        self._traffic.first_seen_s.setdefault(headers.get(POLICY_VERSION, "?"), time.time())
        return answer

    async def _answer(self, user: str, messages: list[dict[str, str]], stream: bool) -> tuple[str, Any]:
        completions = self._client.chat.completions.with_raw_response
        raw = await completions.create(
            model=self._run.serve.served_name,
            messages=messages,
            user=user,
            max_tokens=self._run.evaluate.max_tokens,
            temperature=1.0,
            stream=stream,
        )
        if not stream:
            return raw.parse().choices[0].message.content or "", raw.headers
        text = ""
        async for chunk in raw.parse():
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return text, raw.headers


async def talk_all(run: Run, *, base_url: str, conversations: int, stats: Path | None) -> TrafficStats:
    """Hold conversations with `simulate.concurrency` clients; returns what they saw.

    Ends after `conversations` (0: at SIGTERM or SIGINT). Writes the counts to `stats` every half second.
    """
    from openai import AsyncOpenAI

    persona = persona_of(run.simulate.persona)
    traffic = TrafficStats()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)

    async def work(number: int) -> None:
        simulated = SimulatedClient(client, run, persona, random.Random(f"{run.seed}/{number}"), traffic)
        while not stop.is_set() and (not conversations or traffic.conversations + traffic.failed < conversations):
            await simulated.talk()

    async def report() -> None:
        while stats is not None:
            write_json(stats, traffic)
            await asyncio.sleep(0.5)

    async with AsyncOpenAI(
        base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0, timeout=60
    ) as client:
        reporter = asyncio.ensure_future(report())
        await asyncio.gather(*(work(number) for number in range(run.simulate.concurrency)))
        reporter.cancel()
    if stats is not None:
        write_json(stats, traffic)
    return traffic
