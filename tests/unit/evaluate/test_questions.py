"""Questions and judges that a run file names by import path."""

from typing import Any

import pytest

from sdpo_ray.config import Run, parse_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.evaluate.judge import Judge, load_judge
from sdpo_ray.evaluate.questions import Questions, load_questions


def three(run: Run) -> Questions:
    return Questions(prompts=("a", "b", "c"), is_right=lambda prompt, text: prompt == text)


def repeated(run: Run) -> Questions:
    return Questions(prompts=("a", "a"), is_right=lambda prompt, text: True)


def none_at_all(run: Run) -> Questions:
    return Questions(prompts=(), is_right=lambda prompt, text: True)


def a_list(run: Run) -> list[str]:
    return ["a", "b"]


def first(run: Run) -> Judge:
    return lambda prompt, a, b: "A"


NUMBER = 3


def run_with(**keys: str) -> Run:
    given: dict[str, Any] = {"evaluate": keys}
    return parse_run(given)


def here(name: str) -> str:
    return f"{__name__}:{name}"


def test_the_questions_of_a_run_are_what_the_function_it_names_returns():
    questions = load_questions(run_with(questions=here("three")))
    assert questions.prompts == ("a", "b", "c")
    assert questions.is_right("a", "a")


def test_the_judge_of_a_run_is_what_the_function_it_names_returns():
    assert load_judge(run_with(judge=here("first")))("p", "x", "y") == "A"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "evaluate.questions is empty: name a function as"),
        ("sdpo_ray.simulate.toy_world", "is not 'package.module:attribute'"),
        ("sdpo_ray.no_such_module:questions", "cannot import 'sdpo_ray.no_such_module:questions': No module named"),
        ("sdpo_ray.simulate.toy_world:no_such", "has no attribute 'no_such'"),
        ("not a module:x", "cannot import"),
        (here("NUMBER"), "is int, not a function"),
        (here("a_list"), "returned list, not Questions"),
        (here("repeated"), "must return distinct prompts"),
        (here("none_at_all"), "must return distinct prompts, at least one"),
    ],
)
def test_a_path_that_gives_no_questions_is_a_configuration_error_that_says_why(path: str, why: str):
    with pytest.raises(ConfigError, match=why):
        load_questions(run_with(questions=path))


@pytest.mark.parametrize(("path", "why"), [("", "evaluate.judge is empty"), (here("three"), "returned Questions")])
def test_a_path_that_gives_no_judge_is_a_configuration_error_that_says_why(path: str, why: str):
    with pytest.raises(ConfigError, match=why):
        load_judge(run_with(judge=path))
