"""Simulated users: violated wishes, reactions, judgement."""

import random

import pytest

from sdpo_ray.simulate.phrases import HELD_OUT_PRAISES, PRAISES, WORDINGS, Wish
from sdpo_ray.simulate.users import PERSONAS, judge, oracle_follow_up, react, violations
from sdpo_ray.simulate.world import STYLES, Length, answer, questions, style_of

CONCISE = PERSONAS["concise"]
CHATTY = "Great question! The capital of France is Paris. I hope this helps! 😊"


def _complaints(attribute, value):
    return WORDINGS[Wish(attribute=attribute, value=value)].complaints


def test_personas_want_three_attributes_each_and_no_two_want_the_same():
    assert set(PERSONAS) == {"concise", "cheerful", "scholar", "plain"}
    assert all(len({wish.attribute for wish in persona.wishes}) == 3 for persona in PERSONAS.values())
    assert len({frozenset(persona.wishes) for persona in PERSONAS.values()}) == 4


def test_violations_are_named_in_the_order_of_the_wishes():
    assert violations(CONCISE, CHATTY) == ("length", "filler", "emoji")
    assert violations(CONCISE, "Paris. 😊") == ("emoji",)
    assert violations(CONCISE, "**Paris**.") == ()
    assert violations(PERSONAS["cheerful"], CHATTY) == ()
    assert violations(PERSONAS["scholar"], CHATTY) == ("length", "emoji", "bold")


@pytest.mark.parametrize("name", sorted(PERSONAS))
def test_an_even_mixture_of_styles_violates_five_thirds_of_a_wish(name):
    question = questions("train")[0]
    counts = [len(violations(PERSONAS[name], answer(question, style))) for style in STYLES]
    assert sum(counts) / len(counts) == pytest.approx(2 / 3 + 1 / 2 + 1 / 2)


def test_a_complaint_is_about_one_violated_attribute_and_each_gets_its_turn():
    rng = random.Random(0)
    reactions = {react(CONCISE, "Great question! Paris. I hope this helps! 😊", rng) for _ in range(300)}
    assert reactions == {*_complaints("filler", False), *_complaints("emoji", False)}


def test_an_answer_without_fault_is_praised_and_half_of_the_praise_says_why():
    rng = random.Random(0)
    reactions = [react(CONCISE, "Paris.", rng) for _ in range(1_000)]
    reasons = {praise for wish in CONCISE.wishes for praise in WORDINGS[wish].praises}
    assert set(reactions) == {*PRAISES, *reasons}
    assert 0.45 < sum(text in reasons for text in reactions) / len(reactions) < 0.55


def test_held_out_wordings_are_only_said_when_asked_for():
    familiar = {text for phrases in WORDINGS.values() for text in (*phrases.complaints, *phrases.praises)} | set(
        PRAISES
    )
    held_out = {text for phrases in WORDINGS.values() for text in phrases.held_out_complaints} | set(HELD_OUT_PRAISES)
    assert familiar.isdisjoint(held_out)
    rng = random.Random(0)
    assert {react(CONCISE, text, rng, split="held_out") for text in (CHATTY, "Paris.") for _ in range(200)} <= held_out


def test_no_wording_voices_two_wishes():
    texts = [text for words in WORDINGS.values() for text in (*words.complaints, *words.held_out_complaints)]
    assert len(texts) == len(set(texts)) == 9 * 6 + 9 * 3


def test_a_wish_changes_its_own_attribute_and_no_other():
    wish = Wish(attribute="length", value=Length.TERSE)
    before = style_of(CHATTY)
    after = wish.grant(before)
    assert not wish.is_granted_by(before)
    assert wish.is_granted_by(after)
    assert (after.filler, after.emoji, after.bold) == (True, True, False)


def test_the_oracle_states_every_wish():
    assert oracle_follow_up(CONCISE) == "Shorter please. Skip the filler. No emojis please."


@pytest.mark.parametrize(
    ("first", "second", "preference"),
    [
        ("Paris.", CHATTY, "A"),
        (CHATTY, "Paris. 😊", "B"),
        ("Paris.", "**Paris**.", "C"),
        ("Paris. 😊", "The capital of France is Paris.", "C"),
        ("Rome.", "The capital of France is Paris.", "A"),
    ],
)
def test_fewer_violations_win_whatever_the_facts(first, second, preference):
    assert judge(CONCISE, "What is the capital of France?", first, second) == preference
