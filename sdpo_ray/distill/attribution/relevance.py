"""Whether follow-ups have to do with the answers they followed: |A| under their own against |A| under a stranger's.

Words of no concern move an answer too, so |A| alone says little. What the follow-up of another conversation does to the
very same answer is that answer's noise floor; signal / (signal + floor) compares the two without a threshold, and is
1/2 where they are alike. Measured with the weights that an update begins with, on a few interactions, and recorded.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from sdpo_ray.distill.data.examples import Example
from sdpo_ray.io.files import read_json
from sdpo_ray.records import Interaction, Relevance

RELEVANCE_FILE = "relevance.json"
"""A list of `Relevance` beside the candidate's weights; no file where the update did not ask."""
_STRANGERS = 8
"""Other conversations that are tried for one whose follow-up fits behind the same prompt."""

Build = Callable[[Interaction], Example | None]
"""What the learner makes of an interaction; None where it is of no use."""


class RelevanceScores(Protocol):
    """`Learner.scores`."""

    def __call__(self, examples: Sequence[Example], *, hindsight: bool) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceSample:
    """One answer under two follow-ups. Made by `pick`; read by `measure`."""

    own: Example
    stranger: Example
    """The same answer after the same prompt, under the follow-up of another conversation."""


def pick(
    interactions: Sequence[Interaction], examples: Sequence[Example], build: Build, *, num_probes: int, seed: int
) -> list[RelevanceSample]:
    """At most `num_probes` of the interactions that `examples` were made of, chosen by `seed`.

    Strangers follow each other in a ring, so no follow-up stands in for many. An answer that finds none, since all
    others are of its own conversation, or say the same, or leave another prompt, is no probe.
    """
    by_id = {each.interaction_id: each for each in interactions}
    scored = [item for item in examples if item.num_scored]
    random.Random(f"relevance/{seed}").shuffle(scored)
    ring = [by_id[item.interaction_id] for item in scored]
    found = (_probe(item, ring[place], _strangers(place, ring), build) for place, item in enumerate(scored))
    return list(islice((each for each in found if each is not None), num_probes))


def measure(probes: Sequence[RelevanceSample], scores: RelevanceScores) -> tuple[Relevance, ...]:
    """Three passes over the probes; those whose log-probs are not finite are left out."""
    if not probes:
        return ()
    own, strangers = [probe.own for probe in probes], [probe.stranger for probe in probes]
    served, told = scores(own, hindsight=False), scores(own, hindsight=True)
    strange = scores(strangers, hindsight=True)
    found = (
        Relevance(interaction_id=item.interaction_id, signal=_size(before, after), floor=_size(before, elsewhere))
        for item, before, after, elsewhere in zip(own, served, told, strange, strict=True)
    )
    return tuple(each for each in found if math.isfinite(each.signal) and math.isfinite(each.floor))


def read_relevance(candidate: Path) -> tuple[Relevance, ...]:
    """What lies beside a candidate; nothing where its update did not ask. Raises DataError."""
    file = candidate / RELEVANCE_FILE
    return tuple(read_json(file, list[Relevance])) if file.exists() else ()


def _strangers(place: int, ring: Sequence[Interaction]) -> Iterator[Interaction]:
    """Those behind this place whose follow-up is another conversation's, in other words."""
    asked = ring[place]
    for other in (*ring[place + 1 :], *ring[:place]):
        if other.conversation != asked.conversation and _words(other) not in ("", _words(asked)):
            yield other


def _probe(own: Example, asked: Interaction, strangers: Iterator[Interaction], build: Build) -> RelevanceSample | None:
    for other in islice(strangers, _STRANGERS):
        stranger = build(replace(asked, follow_up=other.follow_up))
        if stranger is not None and stranger.prompt_ids == own.prompt_ids:
            return RelevanceSample(own=own, stranger=stranger)
    return None


def _words(interaction: Interaction) -> str:
    return " ".join(interaction.follow_up.split()).casefold()


def _size(before: Sequence[float], after: Sequence[float]) -> float:
    return math.fsum(abs(b - a) for a, b in zip(before, after, strict=True)) / len(before)
