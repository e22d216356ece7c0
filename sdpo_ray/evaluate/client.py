"""Answers of one policy version from an OpenAI-compatible endpoint, by the `openai` client.

The candidate answers through the engine that would serve it; there is no second way to generate.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sdpo_ray.errors import DataError
from sdpo_ray.headers import POLICY_VERSION
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.records import FinishReason

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

MAX_RETRIES = 4
"""Retries of the client, with its exponential back-off, after connection errors, 408, 409, 429 and 5xx."""
TIMEOUT_S = 120.0
_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one evaluation prompt. Made by `generate`; read by `evaluate.suite`."""

    prompt: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    policy_version: int


Answers: TypeAlias = tuple[Answer, ...]


async def generate(
    base_url: str,
    api_key: str,
    model: str,
    prompts: Sequence[str],
    *,
    policy_version: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    concurrency: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """One answer to every prompt, in the order of `prompts`; `concurrency` requests run at a time.

    `base_url` ends in `/v1`. `on_progress` receives the number of answers so far. Raises DataError for an answer by
    another version than `policy_version`, an aborted one or one without its token count, and openai.OpenAIError where a
    request still fails after the retries: there is no partial evaluation.
    """
    from openai import AsyncOpenAI

    answers: dict[int, Answer] = {}
    queue = iter(list(enumerate(prompts)))

    async def worker(client: "AsyncOpenAI", queue: Iterator[tuple[int, str]]) -> None:
        for index, prompt in queue:
            reply = await client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed_of(seed, index),
            )
            answers[index] = _answer(prompt, reply.parse(), reply.headers.get(POLICY_VERSION), policy_version)
            on_progress(len(answers))

    async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=MAX_RETRIES, timeout=TIMEOUT_S) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(prompts))):
                    group.create_task(worker(client, queue))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return tuple(answers[index] for index in range(len(prompts)))


def seed_of(seed: int, index: int) -> int:
    """Sampling seed of prompt number `index`: distinct within a run, the same for every policy version."""
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])
    return (start + index) % _SEEDS


def save_answers(path: Path, answers: Answers) -> None:
    """Write the answers as JSON."""
    write_json(path, answers)


def load_answers(path: Path) -> Answers:
    """Answers that `save_answers` wrote. Raises FileNotFoundError, and DataError for a file that holds none."""
    return read_json(path, tuple[Answer, ...])


def _answer(prompt: str, completion: "ChatCompletion", version: str | None, expected: int) -> Answer:
    if version != str(expected):
        raise DataError(f"v{expected} is evaluated, but {version or 'no version'} answered {prompt!r}")
    choice = completion.choices[0]
    if choice.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise DataError(f"v{expected} ended with {choice.finish_reason!r} at {prompt!r}")
    if completion.usage is None:
        raise DataError(f"v{expected} sent no token count with its answer to {prompt!r}")
    return Answer(
        prompt=prompt,
        text=choice.message.content or "",
        num_tokens=completion.usage.completion_tokens,
        finish_reason=FinishReason(choice.finish_reason),
        policy_version=expected,
    )
