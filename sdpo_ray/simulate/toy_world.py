"""The toy world as a run file names it: its held-out questions, and its persona as the judge.

[evaluate]
questions = "sdpo_ray.simulate.toy_world:questions"
judge = "sdpo_ray.simulate.toy_world:judge"
"""

import random
from functools import partial

from sdpo_ray.config import Run
from sdpo_ray.evaluate.judge import Judge
from sdpo_ray.evaluate.questions import Questions
from sdpo_ray.simulate import users
from sdpo_ray.simulate.world import is_right, sample_prompt


def questions(run: Run) -> Questions:
    """`evaluate.num_prompts` held-out prompts, with the right answers of the toy world."""
    return Questions(prompts=held_out_prompts(run.evaluate.num_prompts), is_right=is_right)


def judge(run: Run) -> Judge:
    """The taste of `simulate.persona` in style alone. Raises ConfigError for an unknown persona."""
    return partial(users.judge, users.persona_of(run.simulate.persona))


def held_out_prompts(num_prompts: int) -> tuple[str, ...]:
    """Distinct held-out prompts, the same ones in every run."""
    rng = random.Random("evaluation")
    prompts: dict[str, None] = {}
    while len(prompts) < num_prompts:
        prompts[sample_prompt(rng, "held_out").prompt] = None
    return tuple(prompts)
