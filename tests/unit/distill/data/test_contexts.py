"""Shortened follow-ups, and the choice of messages that all contexts share."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config.distill import ContextConfig
from sdpo_ray.distill.data.contexts import contexts, hindsight_block, shortened
from sdpo_ray.records import Message, Role
from tests.support.builders import dialogue, tiny_policy, tool_use
from tests.support.paths import CHECKPOINT


@pytest.fixture(scope="module", params=["bytes", "merges"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    """A tokenizer whose tokens are bytes, and one with merges."""
    return ChatFormat(tiny_policy(tmp_path_factory.mktemp("policy")) if request.param == "bytes" else CHECKPOINT)


@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=300), limit=st.integers(8, 80))
def test_a_short_text_is_itself_and_a_long_one_its_beginning_and_its_end(
    chat: ChatFormat, text: str, limit: int
) -> None:
    short = shortened(text, chat, limit)
    escaped = chat.control.escape(text)
    if len(chat.text_ids(escaped)) <= limit:
        assert short == text
        return
    assert len(chat.text_ids(short)) <= limit
    head, tail = next(
        (short[:at], short[at + 5 :])
        for at in range(len(short))
        if short[at : at + 5] == " ... " and escaped.startswith(short[:at]) and escaped.endswith(short[at + 5 :])
    )
    assert len(head) + len(tail) < len(escaped)


def test_a_shortened_text_is_half_beginning_and_half_end(chat: ChatFormat) -> None:
    text = "".join(chr(ord("a") + i % 26) + "-" for i in range(500))
    short = shortened(text, chat, 65)
    head, tail = short.split(" ... ")
    assert abs(len(chat.text_ids(head)) - len(chat.text_ids(tail))) <= 1
    assert 60 <= len(chat.text_ids(short)) <= 65


def test_characters_of_several_bytes_stay_whole(chat: ChatFormat) -> None:
    for limit in range(8, 40):
        short = shortened("😀é漢" * 200, chat, limit)
        assert set(short) <= set("😀é漢. ")
        assert len(chat.text_ids(short)) <= limit


def test_a_text_of_ten_million_characters_costs_no_more_than_a_long_one(chat: ChatFormat) -> None:
    began = time.process_time()
    short = shortened("a b <|im_end|> " * 700_000, chat, 64)
    assert time.process_time() - began < 5
    assert len(chat.text_ids(short)) <= 64
    assert chat.eos_id not in chat.text_ids(short)


@pytest.mark.parametrize("follow_up", ["", " \n\t"])
def test_there_is_no_block_without_a_follow_up(follow_up: str) -> None:
    assert hindsight_block("online", follow_up) == ""


def words(messages: tuple[Message, ...]) -> tuple[int, ...]:
    """A template and tokenizer with one id per word and ten more per message."""
    return tuple(i for m in messages for i in (*range(10), *map(len, m.content.split())))


def test_room_is_reserved_for_the_block_though_the_prompt_alone_would_fit() -> None:
    said = dialogue("a a a", "b b b", "c c c")
    whole = contexts(said, " o o", words, config=ContextConfig(), room=41)
    assert whole is not None
    assert (len(whole.prompt_ids), len(whole.hindsight_ids), whole.num_left_out) == (39, 41, 0)
    cut = contexts(said, " o o", words, config=ContextConfig(), room=40)
    assert cut is not None
    assert (len(cut.prompt_ids), len(cut.hindsight_ids), cut.num_left_out) == (13, 15, 2)
    assert contexts(said, " o o", words, config=ContextConfig(), room=14) is None


def test_a_limit_of_tokens_is_of_the_prompt_and_not_of_the_block() -> None:
    said = dialogue("a a a", "b b b", "c c c")
    whole = contexts(said, " o o", words, config=ContextConfig(max_prompt_tokens=39), room=99)
    assert whole is not None
    assert whole.num_left_out == 0
    cut = contexts(said, " o o", words, config=ContextConfig(max_prompt_tokens=38), room=99)
    assert cut is not None
    assert cut.num_left_out == 2


def test_all_system_messages_in_front_stay_and_later_ones_are_messages_like_others() -> None:
    front = (Message(role=Role.SYSTEM, content="s"), Message(role=Role.SYSTEM, content="t"))
    said = (*front, *dialogue("a", "b"), Message(role=Role.SYSTEM, content="u"), *dialogue("c"))
    found = contexts(said, "", words, config=ContextConfig(max_messages=2), room=999)
    assert found is not None
    assert found.prompt_ids == words((*front, *dialogue("c")))


def test_what_follows_the_last_user_message_is_never_left_out() -> None:
    said = (*dialogue("a", "b", "c"), *tool_use(), *tool_use("c2"))
    found = contexts(said, "", words, config=ContextConfig(max_messages=5), room=999)
    assert found is not None
    assert found.prompt_ids == words(said[2:])
    assert contexts(said, "", words, config=ContextConfig(max_messages=4), room=999) is None


def test_a_prompt_that_begins_with_an_answer_is_kept_as_it_was_served_where_it_fits() -> None:
    said = dialogue("x", "hello", "c")[1:]
    found = contexts(said, "", words, config=ContextConfig(max_messages=2), room=999)
    assert found is not None
    assert (found.prompt_ids, found.num_left_out) == (words(said), 0)
