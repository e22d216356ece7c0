"""Responses of the engine, and the turns that are recorded of them."""

from dataclasses import dataclass

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.records import FinishReason, Sampling, ToolCall, Turn, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResponse:
    """One response as the engine made it. Made by `serve.engine.recording_engine`; read by `capture.recorder`."""

    choice: int
    """Index among the `n` responses that the request asked for."""
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    sampling: Sampling
    response_calls: tuple[ToolCall, ...] = ()
    adapter: str = ""
    """The fields from `response` on are as in `records.Turn`."""
    finished_at_s: float | None = None
    """Unix time; None means the time of recording."""


def make_turn(request: ChatRequest, response: EngineResponse, *, pseudonyms: Pseudonyms, finished_at_s: float) -> Turn:
    """The turn of a request and one response, not redacted yet. `finished_at_s` is Unix time.

    Raises UnicodeEncodeError for text without a UTF-8 form.
    """
    keys = pairing_keys(
        key=pseudonyms.pairing_key,
        tenant=request.tenant,
        user=request.user,
        conversation_id=request.conversation_id,
        messages=request.messages,
        response=response.response,
    )
    return Turn(
        turn_id=request.turn_id if response.choice == 0 else f"{request.turn_id}-{response.choice}",
        tenant=request.tenant,
        user=pseudonyms.of(request.user),
        conversation_id=keys.conversation if request.conversation_id else "",
        consent=request.consent,
        messages=request.messages,
        tools=request.tools,
        template_kwargs=request.template_kwargs,
        response=response.response,
        response_calls=response.response_calls,
        prompt_ids=response.prompt_ids,
        response_ids=response.response_ids,
        response_logprobs=response.response_logprobs,
        version_spans=response.version_spans,
        finish_reason=response.finish_reason,
        sampling=response.sampling,
        adapter=response.adapter,
        started_at_s=request.started_at_s,
        finished_at_s=finished_at_s,
        keys=keys,
    )


def num_chars(request: ChatRequest, response: EngineResponse) -> int:
    """Number of characters of the turn that redaction reads."""
    messages = sum(len(m.content) + sum(len(call.arguments) for call in m.tool_calls) for m in request.messages)
    calls = sum(len(call.arguments) for call in response.response_calls)
    return messages + len(request.tools) + len(request.template_kwargs) + len(response.response) + calls
