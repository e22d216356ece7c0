"""vLLM's outputs become recorded responses: whole, streamed and aborted ones."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from sdpo_ray.capture.engine_response import EngineResponse
from sdpo_ray.records import FinishReason, Sampling, ToolCall, VersionSpan
from serve.engine.request_recorder import CallsOf, RequestRecorder, sampling_of
from serve.request_context import ChatContext, RequestContext

PARAMS = SamplingParams(max_tokens=9, logprobs=0)


def span(version: str, start: int, end: int) -> Any:
    return SimpleNamespace(version=version, start=start, end=end)


VERSIONS = [span("3", 0, 2), span("4", 2, 5)]


def piece(text: str, ids: Sequence[int], ended: str | None = None, *, index: int = 0, versions: Any = None) -> Any:
    """As `vllm.outputs.CompletionOutput`: new tokens of one choice, each with a log-prob of minus its id."""
    return SimpleNamespace(
        index=index,
        text=text,
        token_ids=list(ids),
        logprobs=[{token: SimpleNamespace(logprob=-float(token)), 99: None} for token in ids],
        finish_reason=ended,
        weight_versions=versions,
    )


def output(*pieces: Any) -> Any:
    """As `vllm.outputs.RequestOutput`."""
    return SimpleNamespace(prompt_token_ids=[7, 8], outputs=list(pieces))


def recording(*, recorded: bool = True, calls_of: CallsOf | None = None, left: Any = None) -> RequestRecorder:
    """`left` is what vLLM still has for the client when the request is aborted."""
    chat = ChatContext(context=RequestContext(path="", request_id=""), request=None, recorded=recorded)
    found = RequestRecorder(chat, PARAMS, calls_of)
    found.queue = SimpleNamespace(output=left)
    return found


def only(found: RequestRecorder) -> EngineResponse:
    (answer,) = found.responses()
    return answer


def test_a_stream_is_the_sum_of_its_pieces() -> None:
    found = recording()
    found.add(output(piece("Pa", [1, 2])))
    found.add(output(piece("ris", [3])))
    found.add(output(piece("", [4], "stop", versions=[span("3", 0, 4)])))
    assert only(found) == EngineResponse(
        choice=0,
        response="Paris",
        prompt_ids=(7, 8),
        response_ids=(1, 2, 3, 4),
        response_logprobs=(-1.0, -2.0, -3.0, -4.0),
        version_spans=(VersionSpan(policy_version=3, start=0, end=4),),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=9, seed=None),
    )
    context = found.chat.context
    assert (context.prompt_tokens, context.response_tokens) == (2, 4)


@pytest.mark.parametrize(
    ("said", "recorded"),
    [("stop", "stop"), ("length", "length"), ("repetition", "length"), ("abort", "abort"), ("error", "abort")],
)
def test_every_way_to_end_of_vllms_is_one_of_ours(said: str, recorded: str) -> None:
    found = recording()
    found.add(output(piece("Paris", [1], said, versions=VERSIONS[:1])))
    assert only(found).finish_reason == recorded


def test_of_a_stream_that_is_broken_off_what_was_handed_on_is_recorded() -> None:
    found = recording()
    found.add(output(piece("Pa", [1, 2])))
    found.add(output(piece("ris", [3])))
    # What vLLM still had, with its last word: the client saw neither.
    found.queue.output = output(piece(" is", [4, 5], "abort", versions=VERSIONS))
    found.abort()
    answer = only(found)
    assert (answer.response, answer.response_ids, answer.finish_reason) == ("Paris", (1, 2, 3), FinishReason.ABORT)
    assert answer.version_spans == (
        VersionSpan(policy_version=3, start=0, end=2),
        VersionSpan(policy_version=4, start=2, end=3),
    )
    assert answer.finished_at_s is not None
    assert found.chat.context.response_tokens == 5, "all that was made is charged"


def test_a_stream_that_had_ended_unseen_is_broken_off_where_the_client_left_it() -> None:
    found = recording()
    found.add(output(piece("Pa", [1])))
    found.queue.output = output(piece("ris", [2, 3], "stop", versions=[span("3", 0, 3)]))
    found.abort()
    answer = only(found)
    assert (answer.response_ids, answer.finish_reason) == ((1,), FinishReason.ABORT)
    assert answer.version_spans == (VersionSpan(policy_version=3, start=0, end=1),)


def test_of_a_whole_answer_that_is_broken_off_all_that_was_made_is_recorded() -> None:
    found = recording()
    found.queue.output = output(piece("Paris is", [1, 2, 3, 4, 5], "abort", versions=VERSIONS))
    found.abort()
    answer = only(found)
    assert (answer.response, answer.response_ids, answer.finish_reason) == (
        "Paris is",
        (1, 2, 3, 4, 5),
        FinishReason.ABORT,
    )
    assert len(answer.version_spans) == 2
    assert found.chat.context.response_tokens == 5


def test_choices_that_ended_stay_what_they_are_when_the_others_are_broken_off() -> None:
    found = recording()
    found.add(output(piece("Paris", [1], "stop", index=1, versions=VERSIONS[:1]), piece("It", [2], index=0)))
    found.queue.output = output(piece("", [], "abort", index=0, versions=VERSIONS[:1]))
    found.abort()
    assert [(answer.choice, answer.finish_reason, answer.response) for answer in found.responses()] == [
        (0, FinishReason.ABORT, "It"),
        (1, FinishReason.STOP, "Paris"),
    ]


@pytest.mark.parametrize("left", [None, output(piece("", [], "abort", versions=[])), RuntimeError()])
def test_nothing_is_recorded_of_an_answer_without_a_token(left: Any) -> None:
    found = recording(left=left)
    found.abort()
    assert found.responses() == []


def test_a_request_that_never_reached_the_engine_leaves_nothing() -> None:
    found = recording()
    found.queue = None
    found.abort()
    assert found.responses() == []


def test_tokens_of_what_is_not_recorded_are_counted_all_the_same() -> None:
    found = recording(recorded=False)
    found.add(output(piece("a", [1, 2], "stop"), piece("b", [3], "stop", index=1)))
    assert (found.chat.context.prompt_tokens, found.chat.context.response_tokens) == (2, 3)
    assert found.responses() == []


def test_an_adapters_answer_has_its_name_and_where_it_is_the_release_its_version() -> None:
    found = recording()
    found.add(output(piece("Paris", [1, 2], "stop", versions=VERSIONS[:1])))
    found.chat.context.adapter = "ann@v2"
    assert (only(found).adapter, only(found).version_spans[0].policy_version) == ("ann@v2", 3)
    found.chat.release_version = 8
    assert only(found).version_spans == (VersionSpan(policy_version=8, start=0, end=2),)


def test_calls_of_tools_are_read_from_the_whole_text() -> None:
    call = ToolCall(call_id="", name="weather", arguments="{}")
    asked: list[Any] = []

    def calls_of(text: str, ids: Sequence[int]) -> tuple[ToolCall, ...]:
        asked.append((text, list(ids)))
        return (call,)

    found = recording(calls_of=calls_of)
    found.add(output(piece("<tool", [1])))
    found.add(output(piece("_call>", [2], "stop", versions=VERSIONS[:1])))
    assert only(found).response_calls == (call,)
    assert asked == [("<tool_call>", [1, 2])]


def test_what_the_engine_honoured_is_recorded() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        seed=5,
        max_tokens=7,
    )
    stated = {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "max_tokens": 7, "min_p": 0.1}
    penalties = {"presence_penalty": 0.2, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    assert sampling_of(params) == Sampling(**stated, **penalties, seed=5)
    assert sampling_of(params, choice=2).seed == 7


@pytest.mark.parametrize(
    ("asked", "constrained"),
    [
        ({}, False),
        ({"stop": ["."], "stop_token_ids": [3], "ignore_eos": True, "logprobs": 5}, False),
        ({"bad_words": [], "logit_bias": {}}, False),
        ({"structured_outputs": StructuredOutputsParams(regex="[ab]")}, True),
        ({"logit_bias": {3: 1.0}}, True),
        ({"allowed_token_ids": [3]}, True),
        ({"bad_words": ["no"]}, True),
        ({"min_tokens": 2}, True),
    ],
)
def test_whatever_forbids_forces_or_favours_tokens_is_a_constraint(asked: dict[str, Any], constrained: bool) -> None:
    assert sampling_of(SamplingParams(**asked)).constrained is constrained
