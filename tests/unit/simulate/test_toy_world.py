"""The toy world as the questions and the judge of a run file."""

import pytest

from sdpo_ray.config import parse_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.evaluate.judge import load_judge
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.simulate.toy_world import held_out_prompts
from sdpo_ray.simulate.world import find_question

TOY_WORLD = {"questions": "sdpo_ray.simulate.toy_world:questions", "judge": "sdpo_ray.simulate.toy_world:judge"}


def test_the_questions_are_the_same_in_every_run_and_no_two_are_alike():
    assert held_out_prompts(50) == held_out_prompts(50)[:50]
    assert held_out_prompts(60)[:50] == held_out_prompts(50)
    assert len(set(held_out_prompts(192))) == 192


def test_a_run_file_that_names_the_toy_world_has_its_questions_and_its_right_answers():
    questions = load_questions(parse_run({"evaluate": {**TOY_WORLD, "num_prompts": 24}}))
    assert questions.prompts == held_out_prompts(24)
    asked = find_question(questions.prompts[0])
    assert asked is not None
    assert questions.is_right(questions.prompts[0], f"It is {asked.fact.answer}.")
    assert not questions.is_right(questions.prompts[0], "I do not know.")


@pytest.mark.parametrize(("persona", "better"), [("concise", "A"), ("cheerful", "B")])
def test_the_judge_has_the_taste_of_the_persona_that_the_run_names(persona: str, better: str):
    judge = load_judge(parse_run({"evaluate": TOY_WORLD, "simulate": {"persona": persona}}))
    assert (
        judge("p", "Paris.", "Great question! The capital of France is Paris. I hope this helps! \N{PARTY POPPER}")
        == better
    )


def test_a_persona_that_does_not_exist_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"simulate\.persona: there is no 'nobody'"):
        load_judge(parse_run({"evaluate": TOY_WORLD, "simulate": {"persona": "nobody"}}))
