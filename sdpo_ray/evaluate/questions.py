"""What policies are asked in an evaluation, and which answers are right: chosen by the run file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from sdpo_ray.evaluate.import_path import load

IsRight: TypeAlias = Callable[[str, str], bool]
"""is_right(prompt, text): whether the text answers the prompt, in any style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Prompts of an evaluation. Made by what `evaluate.questions` names; read by `evaluate.runner` and the probes."""

    prompts: tuple[str, ...]
    """Distinct, and the same for every policy of a run: answers are paired by position."""
    is_right: IsRight


def load_questions(run: Run) -> Questions:
    """Questions of a run: what the function `evaluate.questions` returns for it.

    Raises ConfigError where the key is empty or names no such function, and for prompts that are missing or repeat.
    """
    made = load("evaluate.questions", run.evaluate.questions)(run)
    if not isinstance(made, Questions):
        raise ConfigError(f"evaluate.questions: {run.evaluate.questions} returned {type(made).__name__}, not Questions")
    if not made.prompts or len(set(made.prompts)) < len(made.prompts):
        raise ConfigError(f"evaluate.questions: {run.evaluate.questions} must return distinct prompts, at least one")
    return made
