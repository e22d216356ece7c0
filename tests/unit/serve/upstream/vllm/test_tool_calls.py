"""Calls of tools are what vLLM's own parser shows of an answer."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from sdpo_ray.records import ToolCall
from tests.support.paths import CHECKPOINT

# vLLM imports torch's compiler, which uses what torch deprecates: nothing of it is imported outside of a test.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(CHECKPOINT))


def reader(tokenizer: Any, parser: str = "hermes") -> Any:
    from serve.upstream.vllm.tool_calls import ToolCallReader

    config = SimpleNamespace(model="policy", hf_config=SimpleNamespace(model_type="qwen3"), hf_overrides=None)
    return ToolCallReader(parser, tokenizer, config)


def written(*cities: str) -> str:
    calls = (json.dumps({"name": "weather", "arguments": {"city": city}}) for city in cities)
    return "Let me see. " + "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def called(city: str) -> ToolCall:
    return ToolCall(call_id="", name="weather", arguments=json.dumps({"city": city}))


@pytest.mark.parametrize(
    ("use", "shown"),
    [
        ({}, (called("Paris"), called("Rome"))),
        ({"tool_choice": "auto"}, (called("Paris"), called("Rome"))),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, (called("Paris"),)),
        ({"tool_choice": "none"}, ()),
    ],
)
def test_calls_are_those_that_the_client_is_shown(tokenizer: Any, use: dict[str, Any], shown: object) -> None:
    assert reader(tokenizer).calls({"tools": [WEATHER], **use}, written("Paris", "Rome"), ()) == shown


@pytest.mark.parametrize(
    "text", ["", "Paris.", "<tool_call>{", "<tool_call>[]</tool_call>", "<tool_call>{}</tool_call>"]
)
def test_an_answer_without_a_whole_call_has_none(tokenizer: Any, text: str) -> None:
    assert reader(tokenizer).calls({"tools": [WEATHER]}, text, ()) == ()


def test_without_a_parser_there_are_none(tokenizer: Any) -> None:
    assert reader(tokenizer, "none").calls({"tools": [WEATHER]}, written("Paris"), ()) == ()
