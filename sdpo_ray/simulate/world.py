"""A made-up world of short questions with one right answer each.

72 facts of five kinds. Every kind has five phrasings for training and three that are held out of pre-training and of
simulated traffic. Greetings and thanks around a question make prompts diverse, so that two users rarely send the same:
37,800 training prompts and 22,680 held-out ones.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sdpo_ray.simulate.style import STYLES, VARIANTS, Length, Style, answer, style_of

__all__ = [
    "FACTS",
    "STYLES",
    "VARIANTS",
    "Fact",
    "Length",
    "Question",
    "QuestionKind",
    "Split",
    "Style",
    "answer",
    "find_question",
    "is_right",
    "questions",
    "sample_prompt",
    "style_of",
]  # fmt: skip

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionKind:
    """One kind of question: its phrasings, and the sentence that answers it."""

    name: str
    phrasings: Mapping[Split, tuple[str, ...]]
    statement: str
    details: tuple[str, ...]
    """`VARIANTS` second sentences, none of which names an answer of this kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A subject and its one right answer. Within a kind no two facts share an answer."""

    kind: QuestionKind
    subject: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and its fact. Made by `questions` and `sample_prompt`; read by `answer` and `is_right`."""

    prompt: str
    fact: Fact


_CAPITAL = QuestionKind(
    name="capital",
    phrasings={
        "train": (
            "What is the capital of {subject}?",
            "Which city is the capital of {subject}?",
            "Name the capital of {subject}.",
            "Tell me the capital city of {subject}.",
            "Do you know the capital of {subject}?",
        ),
        "held_out": (
            "What is the capital city of {subject}?",
            "Can you name the capital of {subject}?",
            "Which city is {subject}'s capital?",
        ),
    },
    statement="The capital of {subject} is {answer}.",
    details=(
        "It is the seat of the government there.",
        "Many people visit that city every year.",
        "You will find it on any map of the country.",
    ),
)
_OPPOSITE = QuestionKind(
    name="opposite",
    phrasings={
        "train": (
            "What is the opposite of {subject}?",
            "Give me the opposite of {subject}.",
            "Which word is the opposite of {subject}?",
            "Name the opposite of the word {subject}.",
            "Do you know the opposite of {subject}?",
        ),
        "held_out": (
            "Tell me the opposite of {subject}.",
            "Can you name the opposite of {subject}?",
            "What is the opposite of the word {subject}?",
        ),
    },
    statement="The opposite of {subject} is {answer}.",
    details=(
        "The two words are often learned as a pair.",
        "Each word says what the other one is not.",
        "You will find both in any word list.",
    ),
)
_SOUND = QuestionKind(
    name="sound",
    phrasings={
        "train": (
            "What does a {subject} say?",
            "Which sound does a {subject} make?",
            "Tell me the sound of a {subject}.",
            "What is the sound of a {subject}?",
            "Do you know what a {subject} says?",
        ),
        "held_out": (
            "What sound does a {subject} make?",
            "Can you name the sound of a {subject}?",
            "Tell me what a {subject} says.",
        ),
    },
    statement="A {subject} says {answer}.",
    details=(
        "You can hear it from far away.",
        "Children love to copy that sound.",
        "It is a sound that people know well.",
    ),
)
_COLOUR = QuestionKind(
    name="colour",
    phrasings={
        "train": (
            "What colour is {subject}?",
            "Which colour does {subject} have?",
            "Tell me the colour of {subject}.",
            "Name the colour of {subject}.",
            "Do you know the colour of {subject}?",
        ),
        "held_out": (
            "What is the colour of {subject}?",
            "Can you name the colour of {subject}?",
            "Which colour is {subject}?",
        ),
    },
    statement="The colour of {subject} is {answer}.",
    details=(
        "It can look a little different at night.",
        "Most people see it that way.",
        "A painter would choose the same one.",
    ),
)
_YOUNG = QuestionKind(
    name="young",
    phrasings={
        "train": (
            "What is a young {subject} called?",
            "What do you call a young {subject}?",
            "Tell me the word for a young {subject}.",
            "Which word means a young {subject}?",
            "Do you know what a young {subject} is called?",
        ),
        "held_out": (
            "What is the word for a young {subject}?",
            "Can you name the word for a young {subject}?",
            "Tell me what a young {subject} is called.",
        ),
    },
    statement="A young {subject} is called a {answer}.",
    details=(
        "It stays close to its mother at first.",
        "It grows quickly in the first months.",
        "People who keep animals use that word often.",
    ),
)

_ANSWERS: tuple[tuple[QuestionKind, str], ...] = (
    (
        _CAPITAL,
        "France Paris, Spain Madrid, Italy Rome, Germany Berlin, Portugal Lisbon, Greece Athens, Austria Vienna, "
        "Poland Warsaw, Hungary Budapest, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, "
        "Ireland Dublin, Russia Moscow, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, "
        "India Delhi, Thailand Bangkok, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago",
    ),
    (
        _OPPOSITE,
        "hot cold, big small, fast slow, happy sad, light dark, open closed, early late, full empty, hard soft, "
        "strong weak, rich poor, new old, clean dirty, loud quiet, wet dry, sweet bitter",
    ),
    (
        _SOUND,
        "cow moo, dog woof, cat meow, sheep baa, duck quack, horse neigh, pig oink, lion roar, bee buzz, snake hiss",
    ),
    (
        _COLOUR,
        "grass green, snow white, coal black, chocolate brown, a_banana yellow, a_tomato red, a_carrot orange, "
        "a_plum purple, a_flamingo pink, the_sky blue",
    ),
    (
        _YOUNG,
        "cat kitten, dog puppy, cow calf, sheep lamb, horse foal, bear cub, hen chick, goose gosling, frog tadpole, "
        "kangaroo joey",
    ),
)

FACTS: tuple[Fact, ...] = tuple(
    Fact(kind=kind, subject=subject.replace("_", " "), answer=right)
    for kind, pairs in _ANSWERS
    for subject, right in (pair.split() for pair in pairs.split(", "))
)

_PREAMBLES = (
    "", "Hi!", "Hello!", "Hey there!", "Good morning!", "Quick one:", "Quick question:", "For my homework:",
    "For a quiz:", "For a crossword:", "My daughter asks:", "One more:", "Just wondering:", "I forgot this:",
    "Help me out:",
)  # fmt: skip
_CLOSERS = ("", "Thanks!", "Thank you.", "Many thanks!", "Cheers!", "I always forget.", "Just checking.")


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """Every fact in every phrasing of `split`, without a greeting."""
    return tuple(
        Question(prompt=phrasing.format(subject=fact.subject), fact=fact)
        for fact in FACTS
        for phrasing in fact.kind.phrasings[split]
    )


def sample_prompt(rng: random.Random, split: Split) -> Question:
    """Draw a question of `split`, with a greeting before it and thanks after it; each of the two may be empty."""
    bare = rng.choice(questions(split))
    parts = (rng.choice(_PREAMBLES), bare.prompt, rng.choice(_CLOSERS))
    return Question(prompt=" ".join(part for part in parts if part), fact=bare.fact)


def find_question(prompt: str) -> Question | None:
    """Return the question that `prompt` contains in any phrasing of either split, or None."""
    for question in (*questions("train"), *questions("held_out")):
        if question.prompt in prompt:
            return Question(prompt=prompt, fact=question.fact)
    return None


def is_right(question: Question | str, answer_text: str) -> bool:
    """Whether `answer_text` gives the right answer and no other answer of the same kind.

    Words count whole and in any case. A prompt without a question of this world has no right answer.
    """
    found = find_question(question) if isinstance(question, str) else question
    if found is None:
        return False
    words = set(re.findall(r"[a-z]+", answer_text.lower()))
    wrong = {fact.answer.lower() for fact in FACTS if fact.kind is found.fact.kind} - {found.fact.answer.lower()}
    return found.fact.answer.lower() in words and not words & wrong
