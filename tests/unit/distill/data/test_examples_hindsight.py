"""The hindsight block: its wording, its place, and the messages around it.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

import json
import time

import pytest

from sdpo_ray.chat import HINDSIGHT_BLOCKS, ChatFormat
from sdpo_ray.config import DistillConfig
from tests.support.builders import dialogue, interaction, tool_use
from tests.support.examples import ONLINE_BLOCK, read_examples, read_one
from tests.support.paths import CHECKPOINT

OFFLINE_BLOCK = (
    "\n\n[HINDSIGHT CONTEXT]\nThe following is a user response to your previous, insufficient attempt. "
    "Improve your response to the user prompt.\nFuture User Message: "
)

PAPER_BLOCK = "\nThe following is a future user message. Use this to guide your answer to the user prompt: "

BLOCKS = {"online": ONLINE_BLOCK, "offline_code": OFFLINE_BLOCK, "paper": PAPER_BLOCK}

TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": None, "parameters": {}}}])


def test_golden_15_every_template_is_tested_here() -> None:
    assert BLOCKS.keys() == HINDSIGHT_BLOCKS.keys()


@pytest.mark.parametrize("template", BLOCKS)
def test_golden_15_the_block_of_each_template_is_at_the_end_of_the_last_user_message_only(
    chat: ChatFormat, template: str
) -> None:
    served = interaction(
        chat, prompt="2 + 2?", follow_up="  Shorter please.\n", history=dialogue("Hi", "Hello", system="Be kind.")
    )
    found = read_one(chat, served, template=template)
    before = (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n2 + 2?"
    )
    after = "<|im_end|>\n<|im_start|>assistant\n"
    assert found.prompt_ids == served.turn.prompt_ids == chat.text_ids(before + after)
    assert found.hindsight_ids == chat.text_ids(f"{before}{BLOCKS[template]}Shorter please.{after}")


ASKED = [1, 283, 269, 201, 20, 223, 13, 223, 20, 33]

ANSWER_NOW = [2, 201, 1, 648, 85, 689, 656, 201]

BLOCK_IDS = {
    "online": [
        *[201, 201, 296, 395, 393, 375, 201, 61, 288, 390, 271, 263, 391, 297, 389, 16, 366, 304, 279, 383, 379, 352],
        *[279, 266, 297, 392, 367, 201, 1194, 506, 16],
    ],
    "offline_code": [
        *[201, 201, 61, 42, 371, 387, 54, 393, 63, 201, 288, 390, 271, 263, 297, 223, 282, 85, 82, 301, 315, 279, 379],
        *[295, 282, 88, 75, 265, 85, 14, 571, 85, 87, 1059, 402, 75, 501, 628, 86, 71, 911, 16, 311, 79, 82, 323, 497],
        *[379, 223, 282, 85, 82, 301, 315, 279, 266, 297, 392, 16, 201, 40, 335, 361, 223, 55, 85, 269, 423, 287, 386],
        *[28, 518, 1130, 506, 16],
    ],
    "paper": [
        *[201, 288, 390, 271, 263, 391, 297, 389, 16, 366, 304, 279, 383, 379, 352, 279, 266, 297, 392, 28, 518, 1130],
        *[506, 16],
    ],
}
"""Token ids of the bundled tiny policy."""


@pytest.mark.parametrize("template", BLOCK_IDS)
def test_golden_15_the_token_ids_of_each_template_are_these(template: str) -> None:
    chat = ChatFormat(CHECKPOINT)
    found = read_one(chat, interaction(chat, prompt="2 + 2?", follow_up="Shorter please."), template=template)
    assert list(found.prompt_ids) == ASKED + ANSWER_NOW
    assert list(found.hindsight_ids) == ASKED + BLOCK_IDS[template] + ANSWER_NOW


def test_golden_15_the_block_is_in_the_user_message_where_a_tool_message_is_last(tool_chat: ChatFormat) -> None:
    served = interaction(tool_chat, prompt="Warm in Paris?", follow_up="In Fahrenheit", after=tool_use(), tools=TOOLS)
    found = read_one(tool_chat, served)
    question = "<|im_start|>user\nWarm in Paris?"
    before, after = tool_chat.text(served.turn.prompt_ids).split(question)
    assert "21 C" in after
    assert tool_chat.text(found.hindsight_ids) == f"{before}{question}{ONLINE_BLOCK}In Fahrenheit{after}"
    assert tool_chat.text(found.hindsight_ids).startswith(f"<|im_start|>tools\n{TOOLS[1:-1]}\n<|im_end|>")


def test_golden_15_template_arguments_are_those_of_the_request_in_both_contexts(tool_chat: ChatFormat) -> None:
    served = interaction(tool_chat, template_kwargs='{"enable_thinking": false}')
    found = read_one(tool_chat, served)
    assert found.prompt_ids == served.turn.prompt_ids
    for ids in (found.prompt_ids, found.hindsight_ids):
        assert tool_chat.text(ids).endswith("<think></think>")


def test_golden_15_no_system_message_is_added_and_a_stated_one_stays(chat: ChatFormat) -> None:
    bare, named = interaction(chat, prompt="Hi"), interaction(chat, history=dialogue(system="Be kind."))
    assert chat.text(read_one(chat, bare).prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.text(read_one(chat, named).hindsight_ids).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


@pytest.mark.parametrize("follow_up", ["", " ", "\n\t "])
def test_golden_1_an_empty_follow_up_adds_nothing(chat: ChatFormat, follow_up: str) -> None:
    found = read_one(chat, interaction(chat, follow_up=follow_up))
    assert found.hindsight_ids == found.prompt_ids


def test_golden_1_an_empty_follow_up_adds_nothing_to_a_cut_prompt(chat: ChatFormat) -> None:
    served = interaction(chat, history=dialogue("a", "b", "c", "d"), follow_up=" ")
    found = read_one(chat, served, max_messages=1)
    assert found.hindsight_ids == found.prompt_ids != served.turn.prompt_ids


def test_supervised_learning_builds_no_hindsight_context(chat: ChatFormat) -> None:
    found = read_one(chat, interaction(chat, follow_up="Shorter. " * 1000), config=DistillConfig(objective="sft"))
    assert found.hindsight_ids == found.prompt_ids


def test_a_follow_up_of_a_hundred_thousand_characters_is_shortened_quickly(chat: ChatFormat) -> None:
    rant = "Shorter! " + "blah " * 20_000 + "Really."
    began = time.process_time()
    (found,), counts = read_examples(chat, interaction(chat, follow_up=rant), max_follow_up_tokens=64)
    assert time.process_time() - began < 2
    assert counts == {"follow_up_shortened": 1}
    added = len(found.hindsight_ids) - len(found.prompt_ids) - len(chat.text_ids(ONLINE_BLOCK))
    assert 60 <= added <= 64
    text = chat.text(found.hindsight_ids)
    assert f"{ONLINE_BLOCK}Shorter! blah" in text
    assert "blah Really.<|im_end|>" in text
