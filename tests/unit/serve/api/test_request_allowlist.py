"""What may be asked of the engine, and what is refused before it gets there."""

import json
from typing import Any

import pytest

from sdpo_ray.errors import DataError
from serve.api.request_allowlist import check_chat, check_completion

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": MESSAGES, **more}


def schema(stated: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": stated}}


def tools(parameters: object, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, **more}}]


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def text(pattern: str) -> dict[str, str]:
    return {"type": "string", "pattern": pattern}


REFUSED = {
    "a template": ({"chat_template": "{{ 7 * 7 }}"}, "chat_template:"),
    "a template in its arguments": (
        {"chat_template_kwargs": {"chat_template": "x"}},
        "chat_template_kwargs: chat_templ",
    ),
    "the conversation in the template's arguments": ({"chat_template_kwargs": {"messages": []}}, "messages"),
    "a cut prompt": ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens:"),
    "a prompt without its end": ({"add_generation_prompt": False}, "add_generation_prompt:"),
    "an answer begun by the client": ({"continue_final_message": True}, "continue_final_message:"),
    "a place before others": ({"priority": -1}, "priority:"),
    "a beam search": ({"use_beam_search": True}, "use_beam_search:"),
    "a transfer of caches": ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params:"),
    "arguments of plugins": ({"vllm_xargs": {"a": 1}}, "vllm_xargs:"),
    "log-probs of the prompt": ({"prompt_logprobs": 1}, "prompt_logprobs:"),
    "a name of the client's for the request": ({"request_id": "mine"}, "request_id:"),
    "functions of old": ({"functions": []}, "functions:"),
    "speech": ({"modalities": ["text", "audio"]}, "modalities"),
    "too many answers": ({"n": 129}, "n:"),
    "no answers": ({"n": 0}, "n:"),
    "answers in words": ({"n": "5000"}, "n:"),
    "answers in truth": ({"n": True}, "n:"),
    "half a character": ({"stop": "\ud800"}, "surrogate"),
    "half a character in a name": ({"metadata": {"\udfff": "x"}}, "surrogate"),
    "no number": ({"temperature": float("nan")}, "finite"),
    "a number without end": ({"logit_bias": {"1": float("inf")}}, "finite"),
    "a number of 65 bits": ({"top_k": 2**63}, "64 bits"),
    "lists in lists in lists": ({"metadata": {"a": nested(70)}}, "deep"),
    "a bias for everything": ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias:"),
    "too many stops": ({"stop_token_ids": list(range(1025))}, "stop_token_ids:"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
        "image",
    ),
    "a part without a type": ({"messages": [{"role": "user", "content": [{"image_url": "u"}]}]}, "None"),
    "a part that is none": ({"messages": [{"role": "user", "content": ["hi"]}]}, "part of a message"),
    "a structural tag": ({"response_format": {"type": "structural_tag"}}, "response_format:"),
    "an unhashable format": ({"response_format": {"type": []}}, "response_format:"),
    "a grammar": ({"structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs:"),
    "a constraint in words": ({"structured_outputs": "regex"}, "structured_outputs:"),
    "a constraint's backend": ({"structured_outputs": {"regex": "a", "_backend": "outlines"}}, "_backend"),
    "a schema that is no JSON": ({"structured_outputs": {"json": "{"}}, "not JSON"),
    "a schema deep within a string": ({"structured_outputs": {"json": "[" * 9999 + "]" * 9999}}, "structured_outputs"),
    "a long schema": ({"response_format": schema({"enum": ["x" * 100] * 700})}, "bytes"),
    "a list of a million": ({"response_format": schema({"type": "array", "minItems": 10**6})}, "items"),
    "a hundred long lists": (
        {"response_format": schema({"anyOf": [{"type": "array", "maxItems": 101 + i} for i in range(100)]})},
        "items",
    ),
    "schemas that hold at once": ({"response_format": schema({"allOf": [text(".*a.*"), text(".*b.*")]})}, "allOf"),
    "a pattern beside others": ({"response_format": schema({**text("a*"), "anyOf": [text("b*")]})}, "beside anyOf"),
    "properties beside a reference": (
        {"response_format": schema({"$ref": "#/$defs/a", "properties": {}, "$defs": {"a": {}}})},
        "beside $ref",
    ),
    "the compiler's own settings": ({"response_format": schema({"x-guidance": {}})}, "x-guidance"),
    "repetitions within each other": ({"response_format": schema(text("((a{100}){100}){2}"))}, "repeats"),
    "repetitions in zeros": ({"structured_outputs": {"regex": f"a{{{'0' * 5000}99999}}"}}, "characters"),
    "repetitions in some zeros": ({"structured_outputs": {"regex": f"a{{{'0' * 50}99999}}"}}, "repeats"),
    "a number of 500 digits": ({"structured_outputs": {"regex": f"a{{1,{'9' * 500}}}"}}, "repeats"),
    "a long pattern": ({"response_format": schema(text(".*" * 600))}, "characters"),
    "a pattern of names": (
        {"response_format": schema({"type": "object", "patternProperties": {"(a|b){0,10001}": {}}})},
        "repeats",
    ),
    "many patterns of names": (
        {"response_format": schema({"type": "object", "patternProperties": {f"^{i}$": {} for i in range(17)}})},
        "patternProperties",
    ),
    "a tool that must be called": (
        {"tools": tools({"type": "array", "minItems": 10**6}), "tool_choice": "required"},
        "tools:",
    ),
    "a named tool": (
        {
            "tools": tools({"allOf": [{}, {}]}),
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        "tools:",
    ),
    "a strict tool beside a format": (
        {"tools": tools({}, strict=True), "response_format": {"type": "json_object"}},
        "strict",
    ),
}


@pytest.mark.parametrize(("more", "why"), REFUSED.values(), ids=REFUSED)
def test_what_could_harm_others_is_refused_and_named(more: dict[str, Any], why: str):
    with pytest.raises(DataError) as refused:
        check_chat(chat(**more))
    assert why in str(refused.value)


TAKEN = {
    "nothing more": {},
    "nulls for anything": {"chat_template": None, "n": None, "structured_outputs": None, "response_format": None},
    "OpenAI's sampling": {
        "n": 128,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["a"],
        "seed": -(2**63),
        "logprobs": True,
    },
    "vLLM's sampling": {"top_k": 5, "min_p": 0.1, "min_tokens": 3, "ignore_eos": True, "repetition_penalty": 1.1},
    "what OpenAI stores": {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"]},
    "a date": {"response_format": schema(text(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$"))},
    "a UUID": {"structured_outputs": {"regex": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"}},
    "a choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "what pydantic writes": {
        "response_format": schema(
            {
                "$defs": {"Leg": {"type": "object", "properties": {"to": {"type": "string", "maxLength": 80}}}},
                "properties": {
                    "legs": {"items": {"$ref": "#/$defs/Leg"}, "maxItems": 9, "title": "Legs", "type": "array"},
                    "first": {"anyOf": [{"$ref": "#/$defs/Leg"}, {"type": "null"}], "default": None},
                    "last": {"allOf": [{"$ref": "#/$defs/Leg"}], "description": "The last."},
                },
                "required": ["legs"],
                "title": "Trip",
                "type": "object",
            }
        )
    },
    "properties named like keywords": {
        "response_format": schema(
            {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("$ref", "anyOf", "pattern", "minItems")},
            }
        )
    },
    "tools that are only shown": {"tools": tools({"allOf": [{}, {}], "type": "array", "minItems": 10**6})},
    "tools that must be called": {"tools": tools({"type": "object"}, strict=True), "tool_choice": "required"},
    "text in parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "a template's own arguments": {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
    "no messages at all": {"messages": 7},
}


@pytest.mark.parametrize("more", TAKEN.values(), ids=TAKEN)
def test_usual_requests_are_accepted(more: dict[str, Any]):
    check_chat(chat(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": "Once"},
        {"prompt": ["Once", "Twice"], "n": 64, "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": list(range(5000)), "n": 128},
        {"prompt": [[1, 2], [3]], "best_of": 1},
    ],
)
def test_completions_of_text_and_of_tokens_are_taken(more: dict[str, Any]):
    check_completion({"model": "policy", **more})


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"prompt": ["x"] * 65, "n": 2}, "130 answers"),
        ({"prompt": [[1]] * 129}, "129 answers"),
        ({"prompt_embeds": "gASV"}, "prompt_embeds"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "messages": MESSAGES}, "messages"),
        ({"prompt": "x", "prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
def test_completions_are_refused_by_the_same_rules(more: dict[str, Any], why: str):
    with pytest.raises(DataError) as refused:
        check_completion({"model": "policy", **more})
    assert why in str(refused.value)
