"""Simulated users with a taste: personas, their reactions to answers, and their judgement of two answers.

The pre-trained checkpoint has no persona's taste: it writes every style about equally often.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdpo_ray.errors import ConfigError
from sdpo_ray.simulate.phrases import HELD_OUT_PRAISES, PRAISES, WORDINGS, Attribute, Wish
from sdpo_ray.simulate.style import Length, style_of
from sdpo_ray.simulate.world import Split

Preference = Literal["A", "B", "C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A user's taste in answers. Made here; read by `http_clients` and `toy_world`."""

    name: str
    wishes: tuple[Wish, ...]
    """At most one wish per attribute; the user has no preference about the others."""


PERSONAS: Mapping[str, Persona] = {
    persona.name: persona
    for persona in (
        Persona(
            name="concise",
            wishes=(
                Wish(attribute="length", value=Length.TERSE),
                Wish(attribute="filler", value=False),
                Wish(attribute="emoji", value=False),
            ),
        ),
        Persona(
            name="cheerful",
            wishes=(
                Wish(attribute="length", value=Length.SENTENCE),
                Wish(attribute="filler", value=True),
                Wish(attribute="emoji", value=True),
            ),
        ),
        Persona(
            name="scholar",
            wishes=(
                Wish(attribute="length", value=Length.DETAIL),
                Wish(attribute="emoji", value=False),
                Wish(attribute="bold", value=True),
            ),
        ),
        Persona(
            name="plain",
            wishes=(
                Wish(attribute="length", value=Length.SENTENCE),
                Wish(attribute="filler", value=False),
                Wish(attribute="bold", value=False),
            ),
        ),
    )
}


def persona_of(name: str) -> Persona:
    """The persona that a run names in `simulate.persona`. Raises ConfigError."""
    if name not in PERSONAS:
        raise ConfigError(f"simulate.persona: there is no {name!r}; known: {', '.join(PERSONAS)}")
    return PERSONAS[name]


def violations(persona: Persona, answer: str) -> tuple[Attribute, ...]:
    """Attributes of `answer` that violate a wish of `persona`, in the order of the wishes."""
    return tuple(wish.attribute for wish in _violated(persona, answer))


def react(persona: Persona, answer: str, rng: random.Random, *, split: Split = "train") -> str:
    """Next message of `persona`: a complaint about one violated wish drawn at random, else praise.

    Half of the praise names a satisfied wish; the other half names no style.
    """
    if violated := _violated(persona, answer):
        wordings = WORDINGS[rng.choice(violated)]
        return rng.choice(wordings.complaints if split == "train" else wordings.held_out_complaints)
    if split == "held_out":
        return rng.choice(HELD_OUT_PRAISES)
    if rng.random() < 0.5:
        return rng.choice(WORDINGS[rng.choice(persona.wishes)].praises)
    return rng.choice(PRAISES)


def oracle_follow_up(persona: Persona) -> str:
    """A follow-up that states every wish of `persona`: the most that a follow-up can tell."""
    return " ".join(WORDINGS[wish].complaints[0] for wish in persona.wishes)


def judge(persona: Persona, prompt: str, answer_a: str, answer_b: str) -> Preference:
    """The answer that violates fewer wishes: A, B, or C for a tie.

    Only the style is judged, as in the paper; `prompt` is an argument of every `evaluate.judge.Judge`.
    """
    a, b = len(violations(persona, answer_a)), len(violations(persona, answer_b))
    if a == b:
        return "C"
    return "A" if a < b else "B"


def _violated(persona: Persona, answer: str) -> tuple[Wish, ...]:
    style = style_of(answer)
    return tuple(wish for wish in persona.wishes if not wish.is_granted_by(style))
