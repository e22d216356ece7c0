"""The made-up world: its questions, its answers and the style of any text."""

import random

import pytest

from sdpo_ray.simulate.world import (
    FACTS,
    STYLES,
    VARIANTS,
    Length,
    Question,
    Style,
    answer,
    find_question,
    is_right,
    questions,
    sample_prompt,
    style_of,
)


def _ask(prompt: str) -> Question:
    question = find_question(prompt)
    assert question is not None
    return question


def _style(length: Length, *marks: str) -> Style:
    return Style(length=length, filler="filler" in marks, emoji="emoji" in marks, bold="bold" in marks)


def test_there_are_72_facts_and_no_two_of_a_kind_share_an_answer():
    assert len(FACTS) == 72
    assert len({(fact.kind.name, fact.answer) for fact in FACTS}) == 72


def test_held_out_phrasings_are_never_asked_in_training():
    held_out = {question.prompt for question in questions("held_out")}
    assert len(held_out) == 216
    assert held_out.isdisjoint(question.prompt for question in questions("train"))
    rng = random.Random(0)
    asked = [sample_prompt(rng, "train").prompt for _ in range(2_000)]
    assert not [prompt for prompt in asked if any(phrase in prompt for phrase in held_out)]


def test_training_traffic_rarely_repeats_a_prompt():
    rng = random.Random(0)
    assert len({sample_prompt(rng, "train").prompt for _ in range(6_000)}) > 5_000


def test_the_same_seed_draws_the_same_prompt():
    assert sample_prompt(random.Random(7), "train") == sample_prompt(random.Random(7), "train")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_sampled_prompt_is_found_again(split):
    rng = random.Random(1)
    for _ in range(500):
        question = sample_prompt(rng, split)
        assert find_question(question.prompt) == question


def test_a_stranger_to_this_world_is_not_found():
    assert find_question("What is the capital of Atlantis?") is None
    assert not is_right("What is the capital of Atlantis?", "Paris.")


def test_every_fact_in_every_style_and_wording_is_right_and_measures_as_that_style():
    for question in questions("train")[::5]:
        for style in STYLES:
            for variant in range(VARIANTS):
                text = answer(question, style, variant=variant)
                assert is_right(question, text), text
                assert style_of(text) == style, text


def test_answers_read_as_written_here():
    france = _ask("Hi! What is the capital of France? Thanks!")
    assert answer(france, _style(Length.TERSE)) == "Paris."
    assert answer(france, _style(Length.SENTENCE, "bold")) == "The capital of France is **Paris**."
    assert answer(_ask("What is the opposite of hot?"), _style(Length.TERSE, "filler", "emoji", "bold")) == (
        "Great question! **Cold**. I hope this helps! 😊"
    )
    assert answer(_ask("What does a cow say?"), _style(Length.DETAIL, "emoji"), variant=1) == (
        "A cow says moo. Children love to copy that sound. 🎉"
    )


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("PARIS!", True),
        ("It's **Paris**, of course.", True),
        ("Rome.", False),
        ("Paris or Rome.", False),
        ("Parisian", False),
        ("", False),
        ("Paris, said the cow, and moo.", True),
    ],
)
def test_an_answer_is_right_when_it_names_the_answer_and_no_rival_of_its_kind(text, right):
    assert is_right("Quick one: Which city is the capital of France?", text) is right


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("paris", _style(Length.TERSE)),
        ("That is Paris", _style(Length.TERSE)),
        ("The answer is Paris", _style(Length.SENTENCE)),
        ("Excellent question! Paris", _style(Length.TERSE, "filler")),
        ("It's Paris! Hope that helps 🙂", _style(Length.TERSE, "filler", "emoji")),
        ("The capital is Paris.\n\nIt lies on the Seine.", _style(Length.DETAIL)),
        ("**Paris** is the capital of France ❤", _style(Length.SENTENCE, "emoji", "bold")),
        ("2 ** 3 ** 4", _style(Length.TERSE, "bold")),
        ("", _style(Length.TERSE)),
    ],
)
def test_the_style_of_any_text_can_be_measured(text, style):
    assert style_of(text) == style
