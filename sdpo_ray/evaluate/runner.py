"""A policy's answers to the evaluation, from the engine that would serve it."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.evaluate.client import Answers, generate, load_answers, save_answers
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import confirm
from sdpo_ray.records import Release
from sdpo_ray.simulate.world import sample_prompt


class EvalRunner:
    """The questions of one run, and its evaluation engine."""

    def __init__(self, run: Run, layout: Layout) -> None:
        self._run = run
        self._layout = layout
        self.prompts = held_out_prompts(run.evaluate.num_prompts)

    def answers(
        self, policy: Release, path: Path, on_progress: Callable[[int], None], *, passing: bool = False
    ) -> Answers:
        """What `policy` answers: asked for once, then read back from `path`. `on_progress` is told how many are there.

        Two who evaluate at once take turns with the engine: it holds one policy. After one that is `passing`, whose
        weights will be gone, it goes back to what it held.
        """
        if path.exists():
            answers = load_answers(path)
            if [answer.prompt for answer in answers] == self.prompts:
                return answers
        pointer = self._layout.eval_pointer
        with file_lock(pointer):
            before = read_json(pointer, Release) if passing and pointer.exists() else None
            try:
                answers = self._asked(policy, on_progress)
            finally:
                if before is not None:
                    write_json(pointer, before)
        save_answers(path, answers)
        return answers

    def _asked(self, policy: Release, on_progress: Callable[[int], None]) -> Answers:
        settings, url = self._run.evaluate, f"{self._run.serve.url}/evaluator"
        evaluated = replace(policy, previous_version=None, released_at_s=time.time(), adapter="")
        write_json(self._layout.eval_pointer, evaluated)
        confirm(url, policy.policy_version, timeout_s=self._run.promote.confirm_timeout_s)
        return asyncio.run(
            generate(
                f"{url}/v1",
                self._layout.eval_key.read_text(),
                self._run.serve.served_name,
                self.prompts,
                policy_version=policy.policy_version,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                # The same for every policy: pairs differ by their policies, not by their dice.
                seed=self._run.seed,
                concurrency=settings.concurrency,
                on_progress=on_progress,
            )
        )


def held_out_prompts(num_prompts: int) -> list[str]:
    """Distinct held-out prompts, the same ones in every run."""
    rng = random.Random("evaluation")
    prompts: dict[str, None] = {}
    while len(prompts) < num_prompts:
        prompts[sample_prompt(rng, "held_out").prompt] = None
    return list(prompts)
