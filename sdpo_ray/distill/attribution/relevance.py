"""Relevance of follow-ups: |A| of a response under its own follow-up against |A| under an unrelated one.

An unrelated text moves a response too, so |A| alone says little. The |A| under the follow-up of another conversation is
the response's noise floor; signal / (signal + floor) compares the two without a threshold, and is 1/2 where they are
equal. Measured on a few interactions with the weights that an update starts from, and recorded.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from sdpo_ray.distill.data.example import Example
from sdpo_ray.io.files import read_json
from sdpo_ray.records import Interaction, Relevance

RELEVANCE_FILE = "relevance.json"
"""A list of `Relevance` beside the candidate's weights; absent where the update measured none."""
_MAX_TRIES = 8
"""Other conversations that are tried for one whose follow-up fits the same prompt."""

Build = Callable[[Interaction], Example | None]
"""The training example of an interaction; None where it is not trainable."""


class RelevanceScores(Protocol):
    """The signature of `Learner.scores`."""

    def __call__(self, examples: Sequence[Example], *, hindsight: bool) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceSample:
    """One response under two follow-ups. Made by `pick`; read by `measure`."""

    own: Example
    unrelated: Example
    """The same prompt and response, under the follow-up of another conversation."""


def pick(
    interactions: Sequence[Interaction], examples: Sequence[Example], build: Build, *, num_probes: int, seed: int
) -> list[RelevanceSample]:
    """At most `num_probes` samples of the interactions that `examples` were made of, chosen by `seed`.

    Unrelated follow-ups are taken in turn from a ring, so none is used for many responses. A response for which none
    fits (all are of its own conversation, equal its own, or leave another prompt) is not sampled.
    """
    by_id = {each.interaction_id: each for each in interactions}
    scored = [item for item in examples if item.num_scored]
    random.Random(f"relevance/{seed}").shuffle(scored)
    ring = [by_id[item.interaction_id] for item in scored]
    found = (_sample(item, ring[i], _unrelated(i, ring), build) for i, item in enumerate(scored))
    return list(islice((each for each in found if each is not None), num_probes))


def measure(samples: Sequence[RelevanceSample], scores: RelevanceScores) -> tuple[Relevance, ...]:
    """Signal and floor of each sample, in nats, by three passes; drops samples whose log-probs are not finite."""
    if not samples:
        return ()
    own, unrelated = [each.own for each in samples], [each.unrelated for each in samples]
    prompt, hindsight = scores(own, hindsight=False), scores(own, hindsight=True)
    control = scores(unrelated, hindsight=True)
    found = (
        Relevance(interaction_id=item.interaction_id, signal=_mean_abs(x, o), floor=_mean_abs(x, other))
        for item, x, o, other in zip(own, prompt, hindsight, control, strict=True)
    )
    return tuple(each for each in found if math.isfinite(each.signal) and math.isfinite(each.floor))


def read_relevance(candidate: Path) -> tuple[Relevance, ...]:
    """The relevance recorded beside a candidate; empty where its update measured none. Raises DataError."""
    file = candidate / RELEVANCE_FILE
    return tuple(read_json(file, list[Relevance])) if file.exists() else ()


def _unrelated(index: int, ring: Sequence[Interaction]) -> Iterator[Interaction]:
    """The interactions after this one in the ring that are of another conversation, with another follow-up."""
    own = ring[index]
    for other in (*ring[index + 1 :], *ring[:index]):
        if other.conversation != own.conversation and _words(other) not in ("", _words(own)):
            yield other


def _sample(
    own: Example, interaction: Interaction, others: Iterator[Interaction], build: Build
) -> RelevanceSample | None:
    for other in islice(others, _MAX_TRIES):
        unrelated = build(replace(interaction, follow_up=other.follow_up))
        if unrelated is not None and unrelated.prompt_ids == own.prompt_ids:
            return RelevanceSample(own=own, unrelated=unrelated)
    return None


def _words(interaction: Interaction) -> str:
    return " ".join(interaction.follow_up.split()).casefold()


def _mean_abs(before: Sequence[float], after: Sequence[float]) -> float:
    return math.fsum(abs(b - a) for a, b in zip(before, after, strict=True)) / len(before)
