"""Pre-training conversations that teach the policy to use follow-ups, without a preferred style.

35 % plain questions, answered in a uniformly random style: the base policy is this mixture. 40 % questions with
a hindsight block that holds a complaint, praise or an unrelated question. 15 % complaints answered on the
second turn, 10 % new questions on the second turn. Answers satisfy the wishes in their context and are otherwise
drawn from the same mixture, so that a follow-up changes the attributes it names and no others.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_ray.chat import HINDSIGHT_BLOCKS
from sdpo_ray.simulate.phrases import PRAISES, WORDINGS, Wish
from sdpo_ray.simulate.style import STYLES, VARIANTS, Style, answer
from sdpo_ray.simulate.world import Question, sample_prompt

_WISHES = tuple(WORDINGS)
_THANKS_REPLIES = ("You are welcome!", "Any time!", "My pleasure!")
_SYSTEMS = ("You are a helpful assistant.", "Answer the question of the user.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConversation:
    """Alternating texts of user and assistant, the user's first. Made here; read by `tokenizer.encode`."""

    turns: tuple[str, ...]
    system: str | None = None


def with_hindsight(prompt: str, follow_up: str) -> str:
    """Return `prompt` with the hindsight block for `follow_up`, as the teacher reads it."""
    return prompt + HINDSIGHT_BLOCKS["online"] + follow_up.strip()


def sample_conversation(rng: random.Random) -> CorpusConversation:
    """Draw one pre-training conversation."""
    kind = rng.random()
    turns: tuple[str, ...]
    if kind < 0.35:
        turns = _ask(rng, ())
    elif kind < 0.75:
        turns = _in_hindsight(rng)
    elif kind < 0.90:
        turns = _after_complaint(rng)
    else:
        turns = _after_new_question(rng)
    return CorpusConversation(turns=turns, system=rng.choice(_SYSTEMS) if rng.random() < 0.05 else None)


def _obeying(rng: random.Random, wishes: Sequence[Wish]) -> Style:
    style = rng.choice(STYLES)
    for wish in wishes:
        style = wish.grant(style)
    return style


def _reply(rng: random.Random, question: Question, wishes: Sequence[Wish]) -> str:
    return answer(question, _obeying(rng, wishes), variant=rng.randrange(VARIANTS))


def _ask(rng: random.Random, wishes: Sequence[Wish]) -> tuple[str, str]:
    question = sample_prompt(rng, "train")
    return question.prompt, _reply(rng, question, wishes)


def _complaint(rng: random.Random, wishes: Sequence[Wish]) -> str:
    return " ".join(rng.choice(WORDINGS[wish].complaints) for wish in wishes)


def _some_wishes(rng: random.Random) -> tuple[Wish, ...]:
    """One to three wishes for different attributes; in three of five draws, one."""
    chosen = {wish.attribute: wish for wish in rng.choices(_WISHES, k=rng.choice((1, 1, 1, 2, 3)))}
    return tuple(chosen.values())


def _in_hindsight(rng: random.Random) -> tuple[str, ...]:
    kind = rng.random()
    wishes: tuple[Wish, ...] = ()
    if kind < 0.60:
        wishes = _some_wishes(rng)
        follow_up = _complaint(rng, wishes)
    elif kind < 0.70:
        # Praise that names an attribute reinforces it; praise that names none must change nothing.
        wishes = (rng.choice(_WISHES),)
        follow_up = rng.choice(WORDINGS[wishes[0]].praises)
    elif kind < 0.80:
        follow_up = rng.choice(PRAISES)
    else:
        follow_up = sample_prompt(rng, "train").prompt
    earlier = _ask(rng, ()) if rng.random() < 0.15 else ()
    prompt, reply = _ask(rng, wishes)
    return *earlier, with_hindsight(prompt, follow_up), reply


def _after_complaint(rng: random.Random) -> tuple[str, ...]:
    """The first answer is drawn before the complaint, so that it does not depend on the complaint."""
    question = sample_prompt(rng, "train")
    style = rng.choice(STYLES)
    first = answer(question, style, variant=rng.randrange(VARIANTS))
    wish = rng.choice([wish for wish in _WISHES if not wish.is_granted_by(style)])
    second = answer(question, wish.grant(style), variant=rng.randrange(VARIANTS))
    turns = (question.prompt, first, _complaint(rng, (wish,)), second)
    return (*turns, *_ask(rng, (wish,))) if rng.random() < 0.25 else turns


def _after_new_question(rng: random.Random) -> tuple[str, ...]:
    turns: tuple[str, ...] = _ask(rng, ())
    if rng.random() < 0.3:
        turns = (*turns, rng.choice(PRAISES), rng.choice(_THANKS_REPLIES))
    turns = (*turns, *_ask(rng, ()))
    return (*turns, *_ask(rng, ())) if rng.random() < 0.2 else turns
