"""What a probe is: the scores it declares, and the function that measures them.

    PROBE = Probe(name="capitals", scores=(ScoreSpec(name="capitals.lost", direction="max", bound=0.02),), run=measure)

A module of `evaluate.probes` defines one `PROBE`; nothing else has to name it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.judge import Judge
from sdpo_ray.evaluate.questions import IsRight
from sdpo_ray.evaluate.statistics import Estimate
from sdpo_ray.records import Gain, Score, ScoreSpec


class Suite(Enum):
    """The two evaluations that a probe may belong to."""

    SHARED = "shared"
    """Of the policy that all users are served, against base and champion."""
    PERSONAL = "personal"
    """Of one user's personal policy, against the base, with the gains on that user's held-out conversations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeInput:
    """What probes measure. Made by `pipeline.stages` and `personal.trainer`; read by the probes.

    The answers of all policies are to the same prompts in the same order.
    """

    candidate: Answers
    base: Answers
    is_right: IsRight
    confidence: float
    """Of every two-sided interval."""
    champion: Answers = ()
    """Empty in the personal suite."""
    judge: Judge | None = None
    """None in the personal suite."""
    gains: tuple[Gain, ...] = ()
    """Empty in the shared suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement of a candidate. Made in a module of `evaluate.probes`; run by `evaluate.suite`."""

    name: str
    scores: tuple[ScoreSpec, ...]
    """Every score that `run` returns, and no other."""
    run: Callable[[ProbeInput], tuple[Score, ...]]
    suites: frozenset[Suite] = frozenset(Suite)


def score(name: str, estimate: Estimate) -> Score:
    """The score `name` with the value and the interval of `estimate`."""
    return Score(name=name, n=estimate.n, value=estimate.value, low=estimate.low, high=estimate.high)
