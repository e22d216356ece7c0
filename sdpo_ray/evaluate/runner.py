"""Answers of a policy to the evaluation prompts, from the evaluation engine: the engine that would serve it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sdpo_ray.config import Run
from sdpo_ray.evaluate.client import Answers, generate, load_answers, save_answers
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.records import Candidate, Release


class Confirm(Protocol):
    """Waits until an endpoint serves a policy version; `promote.release.confirm`."""

    def __call__(self, url: str, policy_version: int, /, *, timeout_s: float) -> object: ...


class EvalRunner:
    """Evaluation prompts of one run, and the client of its evaluation engine."""

    def __init__(self, run: Run, prompts: Sequence[str], *, confirm: Confirm) -> None:
        self._run = run
        self._layout = run.layout
        self._prompts = list(prompts)
        self._confirm = confirm

    def answers(
        self,
        policy: Candidate | Release,
        path: Path,
        on_progress: Callable[[int, int], None],
        *,
        temporary: bool = False,
    ) -> Answers:
        """Answers of `policy`, generated once and read back from `path` afterwards.

        `on_progress` receives the number of answers so far, and of all. Concurrent evaluations wait for each other,
        since the engine holds one policy. After a `temporary` policy, whose weights are about to be deleted, the engine
        goes back to the policy that it held before.
        """
        if path.exists():
            answers = load_answers(path)
            if [answer.prompt for answer in answers] == self._prompts:
                return answers
        pointer = self._layout.eval_pointer
        with file_lock(pointer):
            before = read_json(pointer, Release) if temporary and pointer.exists() else None
            try:
                answers = self._generate(policy, on_progress)
            finally:
                if before is not None:
                    write_json(pointer, before)
        save_answers(path, answers)
        return answers

    def _generate(self, policy: Candidate | Release, on_progress: Callable[[int, int], None]) -> Answers:
        settings, url = self._run.evaluate, f"{self._run.serve.url}/evaluator"
        # Whole weights without an adapter: that is the same policy.
        evaluated = Release(
            policy_version=policy.policy_version,
            path=policy.path,
            previous_version=None,
            fingerprint=policy.fingerprint,
            released_at_s=time.time(),
            digests=policy.digests,
        )
        write_json(self._layout.eval_pointer, evaluated)
        self._confirm(url, policy.policy_version, timeout_s=self._run.promote.confirm_timeout_s)
        return asyncio.run(
            generate(
                f"{url}/v1",
                self._layout.eval_key.read_text(),
                self._run.serve.served_name,
                self._prompts,
                policy_version=policy.policy_version,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                # The same for every policy: paired answers differ by their policies, not by their random numbers.
                seed=self._run.seed,
                concurrency=settings.concurrency,
                on_progress=lambda done: on_progress(done, len(self._prompts)),
            )
        )
