import json
from pathlib import Path

import pytest

from sdpo_ray.errors import ConfigError
from sdpo_ray.explain.cases import Case, read_cases
from sdpo_ray.records import Message, Role


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_one_object_is_one_case_and_a_list_is_many(tmp_path: Path):
    one = {"prompt": "Why?", "completion": "Because.", "user_response": "Shorter."}
    case = Case(
        name="case-1",
        messages=(Message(role=Role.USER, content="Why?"),),
        completion="Because.",
        follow_up="Shorter.",
        unrelated=None,
    )
    assert read_cases(write(tmp_path / "one.json", one)) == [case]
    history = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    other = {"id": "b", "messages": history, "user_response": "No.", "unrelated": "Thanks."}
    first, second = read_cases(write(tmp_path / "two.json", [one, other]))
    assert first == case
    assert [message.role for message in second.messages] == [Role.SYSTEM, Role.USER]
    assert (second.name, second.completion, second.unrelated) == ("b", None, "Thanks.")


def test_the_authors_file_has_two_follow_ups_a_case_and_no_completion(tmp_path: Path):
    theirs = {"id": "x", "tag": "t", "raw_prompt": "P", "feedback_followup": "F", "unrelated_followup": "U"}
    (case,) = read_cases(write(tmp_path / "theirs.json", {"version": "1.2", "defaults": {}, "cases": [theirs]}))
    assert (case.name, case.completion, case.follow_up, case.unrelated) == ("x", None, "F", "U")
    assert case.messages == (Message(role=Role.USER, content="P"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"prompt": "Why?"}, "user_response"),
        ({"prompt": "Why?", "user_response": "No.", "complection": "x"}, "complection"),
        ({"user_response": "No."}, "either prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}], "user_response": "No."}, "either prompt"),
        ({"messages": [{"role": "assistant", "content": "a"}], "user_response": "No."}, "must be the user's"),
        ([], "holds no case"),
        ([{"id": "a", "prompt": "p", "user_response": "r"}] * 2, "two cases have the id 'a'"),
        ("text", "Expected"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, content: object, words: str):
    with pytest.raises(ConfigError, match=words):
        read_cases(write(tmp_path / "bad.json", content))


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no file .*gone\.json"):
        read_cases(tmp_path / "gone.json")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_cases(tmp_path / "torn.json")
