"""Reading chat requests and their consent."""

import json

import pytest

from sdpo_ray.capture.chat_request import ChatRequest, read_request
from sdpo_ray.capture.consent import consent_of, default_consent
from sdpo_ray.capture.prompt import offered_tools, template_arguments, text_messages
from sdpo_ray.config import CaptureConfig, TenantConfig
from sdpo_ray.errors import DataError
from sdpo_ray.records import Consent, Message, Role, ToolCall

TRAIN, NONE = Consent.TRAIN, Consent.NONE


@pytest.mark.parametrize(
    ("header", "metadata", "default", "expected"),
    [
        (None, None, TRAIN, TRAIN),
        (None, None, NONE, NONE),
        ("train", None, NONE, TRAIN),
        (" None ", None, TRAIN, NONE),
        (None, "none", TRAIN, NONE),
        ("train", "none", TRAIN, NONE),
        ("none", "train", TRAIN, NONE),
    ],
)
def test_stated_consent_counts_and_the_stricter_of_two_wins(header, metadata, default, expected):
    headers = {} if header is None else {"x-sdpo-consent": header}
    assert consent_of(headers, None if metadata is None else {"consent": metadata}, default) is expected


def test_an_unknown_consent_is_an_error():
    with pytest.raises(DataError, match="maybe"):
        consent_of({"x-sdpo-consent": "maybe"}, None, TRAIN)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "user", "content": "x"}],
        [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, {"role": "user", "content": "x"}],
        [{"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "f"}}]}],
        [{"role": "assistant", "content": None}, {"role": "user", "content": "x"}],
        [{"role": "assistant", "content": "", "tool_calls": 7}, {"role": "user", "content": "x"}],
        [{"role": "tool", "content": "42"}],
        [{"role": "user", "content": "hi"}, {"role": "tool", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "developer", "content": "x"}, {"role": "user", "content": "x"}],
    ],
)  # fmt: skip
def test_only_a_text_chat_that_ends_with_the_user_or_a_tool_is_recorded(messages):
    assert text_messages(messages) == ()


def test_text_parts_are_joined_as_the_engine_joins_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}]
    assert text_messages([{"role": "user", "content": parts}]) == (Message(role=Role.USER, content="a\nb"),)


ARGUMENTS = '{"city":"Paris",  "unit": "C"}'
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOL_CHAT = [
    {"role": "user", "content": "Warm in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "21 C"}], "tool_call_id": "c1"},
]


def test_calls_of_tools_and_their_results_are_kept_as_the_client_sent_them():
    assert text_messages(TOOL_CHAT) == (
        Message(role=Role.USER, content="Warm in Paris?"),
        Message(
            role=Role.ASSISTANT,
            content="",
            tool_calls=(ToolCall(call_id="c1", name="weather", arguments=ARGUMENTS),),
        ),
        Message(role=Role.TOOL, content="21 C", tool_call_id="c1"),
    )


def test_a_call_next_to_text_and_a_call_without_arguments_are_kept():
    bare = {"id": "c2", "function": {"name": "now"}}
    chat = [
        {"role": "assistant", "content": "Let me look.", "tool_calls": [bare]},
        {"role": "user", "content": "ok"},
    ]
    assert text_messages(chat)[0] == Message(
        role=Role.ASSISTANT,
        content="Let me look.",
        tool_calls=(ToolCall(call_id="c2", name="now", arguments="{}"),),
    )


def test_tools_keep_their_order_and_get_the_fields_that_the_engine_gives_them():
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    tools = [
        {"function": {"parameters": schema, "name": "weather", "extra": 1, "strict": True}, "type": "function"},
        {"type": "function", "function": {"name": "now", "description": "The time, é."}},
    ]
    assert offered_tools(tools) == (
        '[{"type": "function", "function": {"name": "weather", "description": null, "parameters": '
        '{"type": "object", "properties": {"z": {}, "a": {}}}, "strict": true}}, '
        '{"type": "function", "function": {"name": "now", "description": "The time, é.", "parameters": null}}]'
    )
    assert offered_tools(None) == offered_tools([]) == offered_tools(["nonsense"]) == ""


def test_template_arguments_are_sorted_by_name_and_keep_what_they_hold():
    kwargs = {"b": [{"z": 1, "c": 2}], "a": False}
    assert template_arguments({"chat_template_kwargs": kwargs}) == '{"a": false, "b": [{"z": 1, "c": 2}]}'
    for nothing in ({}, {"chat_template_kwargs": None}, {"chat_template_kwargs": {}}, {"chat_template_kwargs": "x"}):
        assert template_arguments(nothing) == ""
    documents = [{"title": "t"}]
    body = {"reasoning_effort": "none", "documents": documents, "chat_template_kwargs": {"a": 1}}
    assert json.loads(template_arguments(body)) == {
        "a": 1, "documents": documents, "enable_thinking": False, "reasoning_effort": "none",
    }  # fmt: skip
    stated = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}
    assert json.loads(template_arguments(stated)) == {"enable_thinking": False, "reasoning_effort": "high"}


def test_a_request_with_tools_has_them():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = {"messages": TOOL_CHAT, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    asked = read_request(body, {}, turn_id="t", tenant="acme", default=TRAIN, now_s=1.0)
    assert asked == ChatRequest(
        turn_id="t",
        tenant="acme",
        user="",
        conversation_id="",
        consent=TRAIN,
        messages=text_messages(TOOL_CHAT),
        tools=offered_tools(tools),
        template_kwargs='{"enable_thinking": false}',
        started_at_s=1.0,
    )


def test_a_tenant_has_its_own_default_or_the_deployments():
    capture = CaptureConfig(consent=TRAIN, tenants={"bank": TenantConfig(consent=NONE)})
    assert [default_consent(capture, tenant) for tenant in ("bank", "acme", "")] == [NONE, TRAIN, TRAIN]
    strict = CaptureConfig(consent=NONE, tenants={"acme": TenantConfig(consent=TRAIN)})
    assert [default_consent(strict, tenant) for tenant in ("bank", "acme")] == [NONE, TRAIN]


def test_user_and_conversation_are_as_the_client_sent_them_and_the_repr_hides_them():
    body = {"messages": [{"role": "user", "content": "my secret"}], "user": "alice@example.org"}
    asked = read_request(body, {}, turn_id="t", tenant="acme", default=TRAIN, now_s=1.0)
    assert (asked.tenant, asked.user) == ("acme", "alice@example.org")
    assert "alice" not in repr(asked)
    assert "secret" not in f"{asked}"
    for anonymous in (None, "", 7, ["alice"]):
        unnamed = read_request(body | {"user": anonymous}, {}, turn_id="t", tenant="acme", default=TRAIN, now_s=1.0)
        assert unnamed.user == ""


def test_a_conversation_id_comes_from_header_or_metadata():
    body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"conversation_id": "m"}}
    asked = read_request(body, {"x-sdpo-conversation-id": "h"}, turn_id="t", tenant="acme", default=TRAIN, now_s=1.0)
    assert (asked.conversation_id, asked.turn_id, asked.started_at_s) == ("h", "t", 1.0)
    assert read_request(body, {}, turn_id="t", tenant="acme", default=TRAIN, now_s=1.0).conversation_id == "m"
