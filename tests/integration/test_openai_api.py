"""The OpenAI API on a real engine, through OpenAI's clients, and the turns that are recorded."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from transformers import AutoTokenizer

from sdpo_ray.chat import ChatFormat
from sdpo_ray.records import FinishReason, Message, Role, Turn
from tests.support.serving import ReferencePolicy, Served

pytestmark = pytest.mark.integration
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather now.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
LAX: Any = {**TOOL, "function": {name: value for name, value in TOOL["function"].items() if name != "strict"}}
"""A strict tool and a response format exclude each other."""
LONG = {"model": "policy", "messages": QUESTION, "max_tokens": 480, "min_tokens": 480, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def brief(served: Served) -> dict[str, int]:
    """A bias against white space and commas, with which the tiny policy would continue JSON needlessly."""
    tokenizer = AutoTokenizer.from_pretrained(str(served.base))
    texts = map(tokenizer.decode, range(len(tokenizer)))
    return {str(token): -100 for token, text in enumerate(texts) if "," in text or not text.strip()}


def turn_of(served: Served, raw: Any, choice: int = 0) -> Turn:
    turn_id = raw.headers["x-sdpo-turn-id"]
    return served.turns()[f"{turn_id}-{choice}" if choice else turn_id]


def ask(served: Served, client: OpenAI, messages: list[Any] = QUESTION, **more: Any) -> tuple[Any, Turn]:
    """The answer, and the turn of its first choice."""
    raw = client.chat.completions.with_raw_response.create(
        model="policy", messages=messages, **({"max_tokens": 32} | more)
    )
    return raw.parse(), turn_of(served, raw)


def text_and_usage(chunks: list[Any]) -> tuple[str, Any]:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks[-1].usage


def test_the_sdk_streams_with_usage(served: Served, client: OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        model="policy", messages=QUESTION, max_tokens=32, stream=True, stream_options={"include_usage": True}
    )
    text, usage = text_and_usage(list(raw.parse()))
    turn = turn_of(served, raw)
    assert (turn.response, len(turn.prompt_ids), len(turn.response_ids)) == (
        text,
        usage.prompt_tokens,
        usage.completion_tokens,
    )


def test_the_asynchronous_sdk_asks_and_streams(served: Served):
    async def both() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            seed: dict[str, Any] = {"model": "policy", "messages": QUESTION, "max_tokens": 32, "seed": 11}
            plain, stream = await asyncio.gather(
                client.chat.completions.create(**seed), client.chat.completions.create(**seed, stream=True)
            )
            return plain.choices[0].message.content, text_and_usage([chunk async for chunk in stream])[0]

    plain, streamed = asyncio.run(both())
    assert plain == streamed != ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_streams(served: Served):
    body = json.dumps({"model": "policy", "messages": QUESTION, "max_tokens": 16, "stream": True})
    command = ["curl", "-sN", f"{served.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_langchain_invokes_streams_and_calls_tools(served: Served, brief: dict[str, int]):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="policy", base_url=f"{served.url}/v1", api_key="none", max_completion_tokens=32, seed=3)
    whole = model.invoke("What is the capital of France?")
    assert whole.content == "".join(str(piece.content) for piece in model.stream("What is the capital of France?"))
    assert whole.usage_metadata["output_tokens"] > 0
    bound = model.bind_tools([TOOL], tool_choice="weather")
    called = bound.invoke("Is it warm?", logit_bias=brief, max_completion_tokens=64)
    assert called.tool_calls[0]["name"] == "weather"
    assert called.tool_calls[0]["args"]["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called_is(served: Served, client: OpenAI, brief: dict[str, int], choice: Any):
    answer, turn = ask(served, client, tools=[TOOL], tool_choice=choice, max_tokens=128, logit_bias=brief)
    (call,) = answer.choices[0].message.tool_calls
    (recorded,) = turn.response_calls
    assert (recorded.name, recorded.arguments) == (call.function.name, call.function.arguments)
    assert recorded.name == "weather"
    arguments = json.loads(recorded.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    # The text is what the policy generated: a list of calls, or the arguments of the named one.
    text = json.loads(turn.response)
    assert (text[0]["parameters"] if choice == "required" else text) == arguments
    assert turn.sampling.constrained


def written(city: str) -> str:
    return f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_may_be_called_is_shown_as_called_and_recorded_so(served: Served, client: OpenAI, stream: bool):
    forced = {"structured_outputs": {"choice": [f"Let me look. {written('Paris')}"]}}
    raw = client.chat.completions.with_raw_response.create(
        model="policy", messages=QUESTION, tools=[LAX], max_tokens=200, stream=stream, extra_body=forced
    )
    if stream:
        deltas = [chunk.choices[0].delta for chunk in raw.parse() if chunk.choices]
        content = "".join(delta.content or "" for delta in deltas)
        functions = [call.function for delta in deltas for call in delta.tool_calls or ()]
        name, arguments = functions[0].name, "".join(each.arguments or "" for each in functions)
    else:
        message = raw.parse().choices[0].message
        (call,) = message.tool_calls
        content, name, arguments = message.content, call.function.name, call.function.arguments
    turn = turn_of(served, raw)
    assert (content.strip(), name, json.loads(arguments)) == ("Let me look.", "weather", {"city": "Paris"})
    assert turn.response == f"Let me look. {written('Paris')}"
    (recorded,) = turn.response_calls
    assert (recorded.name, json.loads(recorded.arguments)) == (name, json.loads(arguments))


def test_a_tool_that_may_not_be_called_is_not(served: Served, client: OpenAI):
    forced = {"structured_outputs": {"choice": [written("Rome")]}}
    answer, turn = ask(served, client, tools=[LAX], tool_choice="none", max_tokens=200, extra_body=forced)
    assert answer.choices[0].message.content == turn.response == written("Rome")
    assert (answer.choices[0].message.tool_calls or [], turn.response_calls) == ([], ())


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_several_choices_is_recorded_as_what_was_shown(served: Served, client: OpenAI, stream: bool):
    raw = client.chat.completions.with_raw_response.create(
        model="policy", messages=QUESTION, max_tokens=24, n=3, seed=7, stream=stream
    )
    shown = ["", "", ""]
    if stream:
        for chunk in raw.parse():
            for choice in chunk.choices:
                shown[choice.index] += choice.delta.content or ""
    else:
        shown = [choice.message.content for choice in raw.parse().choices]
    turns = [turn_of(served, raw, choice) for choice in range(3)]
    assert [turn.response for turn in turns] == shown
    assert [turn.sampling.seed for turn in turns] == [7, 8, 9]
    assert ask(served, client, max_tokens=24, seed=9)[0].choices[0].message.content == shown[2]


def test_a_stop_string_ends_the_answer_before_it(served: Served, client: OpenAI):
    forced = {"structured_outputs": {"choice": ["One. Two. Three."]}}
    answer, turn = ask(served, client, stop=[" Two"], extra_body=forced)
    assert answer.choices[0].message.content == turn.response == "One."
    assert answer.choices[0].finish_reason == turn.finish_reason == "stop"


def test_log_probs_are_those_of_the_turn(served: Served, client: OpenAI):
    answer, turn = ask(served, client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    # The end token of an answer that ended by itself is recorded and shown, too.
    assert [each.logprob for each in content] == pytest.approx(turn.response_logprobs)
    assert all(len(each.top_logprobs) == 3 for each in content)
    assert ReferencePolicy(served.base).of_response(turn) == pytest.approx(turn.response_logprobs, abs=1e-4)
    assert not turn.sampling.constrained


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["city", "stars"],
    "additionalProperties": False,
}


def test_an_answer_to_a_schema_is_valid(served: Served, client: OpenAI, brief: dict[str, int]):
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer, turn = ask(served, client, response_format=wanted, logit_bias=brief, max_tokens=64)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert turn.response == answer.choices[0].message.content
    assert turn.sampling.constrained


def test_an_answer_in_json_mode_begins_as_json(served: Served, client: OpenAI, brief: dict[str, int]):
    answer, _ = ask(served, client, response_format={"type": "json_object"}, logit_bias=brief)
    assert answer.choices[0].message.content.startswith("{")


def test_a_bias_biases_and_is_recorded_as_such(served: Served, client: OpenAI):
    (token,) = ChatFormat(served.base).text_ids("a")
    answer, turn = ask(served, client, logit_bias={str(token): 100}, max_completion_tokens=5, max_tokens=None)
    assert answer.choices[0].message.content == "aaaaa"
    assert (turn.finish_reason, turn.sampling.max_tokens, turn.sampling.constrained) == (FinishReason.LENGTH, 5, True)


def test_what_the_engine_honoured_is_on_the_turn(served: Served, client: OpenAI):
    _, turn = ask(
        served,
        client,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        user="ann",
        metadata={"conversation_id": "c1"},
        extra_body={"min_p": 0.05, "top_k": 7, "repetition_penalty": 1.1},
    )
    sampling = turn.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.05)
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty)
    assert penalties == (0.2, 0.3, 1.1)
    assert turn.user
    assert turn.conversation_id
    assert not sampling.constrained


def test_models_are_listed_retrieved_and_tell_no_path(served: Served, client: OpenAI):
    (model,) = client.models.list()
    assert client.models.retrieve("policy") == model
    assert model.id == "policy"
    assert str(served.base) not in httpx.get(f"{served.url}/v1/models").text
    with pytest.raises(NotFoundError):
        client.models.retrieve("policy@v1")


# Completions of plain text.


@pytest.fixture
def nobody_is_recorded(served: Served) -> Any:
    before = set(served.turns())
    yield
    assert set(served.turns()) == before


@pytest.mark.usefixtures("nobody_is_recorded")
def test_completions_take_text_lists_and_token_ids(served: Served, client: OpenAI):
    chat = ChatFormat(served.base)
    texts = ["The capital of France is", "Rome is<|im_end|>"]
    raw = client.completions.with_raw_response.create(model="policy", prompt=texts, max_tokens=4, temperature=0)
    one, other = raw.parse().choices
    assert raw.headers["x-sdpo-policy-version"] == "1"
    assert "x-sdpo-turn-id" not in raw.headers
    by_ids = client.completions.create(
        model="policy", prompt=list(chat.text_ids(texts[0])), max_tokens=4, temperature=0
    )
    streamed = client.completions.create(model="policy", prompt=texts[0], max_tokens=4, temperature=0, stream=True)
    assert by_ids.choices[0].text == one.text == "".join(chunk.choices[0].text for chunk in streamed)
    escaped = client.completions.create(model="policy", prompt=texts[1], max_tokens=4, temperature=0, echo=True)
    assert escaped.choices[0].text == f"Rome is<\u200b|im_end|>{other.text}"


@pytest.mark.usefixtures("nobody_is_recorded")
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_gives_the_prompts_own_log_probs(served: Served, client: OpenAI, max_tokens: int):
    text = "The capital of France is Paris."
    reply = client.completions.create(
        model="policy", prompt=text, max_tokens=max_tokens, echo=True, logprobs=1, extra_body={"ignore_eos": True}
    )
    logprobs = reply.choices[0].logprobs
    ids = ChatFormat(served.base).text_ids(text)
    assert logprobs.token_logprobs[0] is None
    expected = ReferencePolicy(served.base).logprobs(ids)
    assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    assert len(logprobs.tokens) == len(ids) + max_tokens
    assert reply.choices[0].text.startswith(text)


@pytest.mark.usefixtures("nobody_is_recorded")
@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", {"model": "gpt-5", "prompt": "x"}, 404),
        ("POST", "/v1/completions", {"model": "policy", "prompt": "word " * 5000}, 400),
        ("POST", "/v1/completions", {"model": "policy", "prompt": [10**9]}, 400),
        ("POST", "/v1/completions", {"model": "policy", "prompt": {"text": "x"}}, 400),
        ("POST", "/v1/completions", {"model": "policy", "prompt": "x", "n": 10**6}, 400),
        ("POST", "/v1/completions", {"model": "policy"}, 400),
        ("POST", "/v1/chat/completions", {"model": "policy", "messages": QUESTION, "tool_choice": "required"}, 400),
        ("POST", "/v1/chat/completions", {"model": "policy", "messages": QUESTION, "logit_bias": {"x": 1}}, 400),
        ("POST", "/v1/chat/completions", {"model": "policy", "messages": QUESTION, "top_logprobs": 500}, 400),
        ("DELETE", "/v1/completions", None, 405),
        ("GET", "/v1/embeddings", None, 404),
        ("GET", "/openapi.json", None, 404),
    ],
)
def test_errors_are_in_openais_shape(served: Served, method: str, path: str, content: Any, status: int):
    reply = httpx.request(method, served.url + path, json=content, timeout=60)
    assert (reply.status_code, set(reply.json()["error"])) == (status, {"message", "type", "param", "code"})


# Answers whose clients disconnected.


def hang_up(served: Served, ask_and_leave: Callable[[float], None]) -> list[Turn]:
    """The turns of a client that disconnects after so many seconds, or by itself.

    A request that ends before its first token records nothing; the client then waits longer in the next attempt.
    """
    before = set(served.turns())
    for patience_s in (0.4, 0.8, 1.6):
        ask_and_leave(patience_s)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if new := set(turns := served.turns()) - before:
                return [turns[turn_id] for turn_id in sorted(new)]
            time.sleep(0.1)
    raise AssertionError("nothing was recorded of who hung up")


def count(served: Served, outcome: str) -> float:
    found = re.search(rf'sdpo_turns_total\{{outcome="{outcome}"\}} (\S+)', httpx.get(f"{served.url}/metrics").text)
    return float(found[1]) if found else 0.0


def test_a_stream_that_is_left_is_recorded_up_to_there_and_can_be_paired(served: Served, client: OpenAI):
    seen: list[str] = []

    def read_some(patience_s: float) -> None:
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    seen.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
                if len(seen) > 8:
                    return

    before = count(served, "aborted")
    (turn,) = hang_up(served, read_some)
    assert turn.finish_reason is FinishReason.ABORT
    assert turn.response.startswith("".join(seen))
    assert 0 < len(turn.response_ids) == len(turn.response_logprobs) < 480
    assert [span.end for span in turn.version_spans] == [len(turn.response_ids)]
    assert count(served, "aborted") == before + 1
    chat = ChatFormat(served.base)
    assert chat.text(turn.response_ids).startswith(turn.response)
    on: list[Any] = [*QUESTION, {"role": "assistant", "content": turn.response}, {"role": "user", "content": "Stop."}]
    _, reaction = ask(served, client, on)
    assert reaction.keys.parent == turn.keys.continuation
    assert reaction.messages[-1] == Message(role=Role.USER, content="Stop.")


@pytest.mark.parametrize("n", [1, 2])
def test_a_plain_request_that_is_left_is_recorded_up_to_there(served: Served, n: int):
    address = urlsplit(served.url)
    body = json.dumps({**LONG, "n": n}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"

    def wait_and_leave(patience_s: float) -> None:
        with socket.create_connection((address.hostname, address.port)) as client:
            # In one piece: HAProxy 2.8 does not notice the disconnect of a client whose body came after its head.
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(patience_s)

    turns = hang_up(served, wait_and_leave)
    assert [turn.finish_reason for turn in turns] == [FinishReason.ABORT] * n
    for turn in turns:
        assert 0 < len(turn.response_ids) == len(turn.response_logprobs) < 480
        assert turn.response
        assert [span.end for span in turn.version_spans] == [len(turn.response_ids)]


def test_disconnected_clients_leave_nothing_in_the_engine(served: Served):
    deadline = time.monotonic() + 20
    while True:
        page = httpx.get(f"{served.url}/metrics").text
        busy = re.findall(r"vllm:num_requests_(?:running|waiting)\{[^}]*\} ([\d.]+)", page)
        if busy and not any(map(float, busy)):
            return
        assert time.monotonic() < deadline, "the engine still works for somebody who left"
        time.sleep(0.2)
