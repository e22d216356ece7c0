"""Collects the outputs of one engine request into the responses that are recorded.

Text, token ids, log-probs, finish reason and weight versions are read from vLLM's own outputs and never recomputed.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdpo_ray.capture.engine_response import EngineResponse
from sdpo_ray.records import FinishReason, Sampling, ToolCall, VersionSpan
from serve.request_context import ChatContext

CallsOf = Callable[[str, Sequence[int]], tuple[ToolCall, ...]]
"""Returns the tool calls that the client is shown for a response's text and token ids."""

_FINISHED = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "repetition": FinishReason.LENGTH}
"""By vLLM's finish reason. A response cut for repeating itself counts as cut by length; others are aborts."""


@dataclass(slots=True)
class _Choice:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    """vLLM's word; empty while the choice is generated."""
    versions: Sequence[Any] = ()


class RequestRecorder:
    """Accumulates a request's outputs, each of which holds what is new. Made by `serve.engine.recording_engine`."""

    def __init__(self, chat: ChatContext, params: Any, calls_of: CallsOf | None) -> None:
        self.chat = chat
        self.queue: Any = None
        """vLLM's collector of this request's outputs, once the engine has the request."""
        self.taken = False
        """Whether `responses` was called to record them."""
        self._params = params
        self._calls_of = calls_of
        self._prompt_ids: Sequence[int] = ()
        self._choices: dict[int, _Choice] = defaultdict(_Choice)
        self._last_output_s = 0.0

    def add(self, output: Any) -> None:
        """Add one `vllm.RequestOutput`."""
        context = self.chat.context
        if not self._prompt_ids:
            self._prompt_ids = output.prompt_token_ids or ()
            context.prompt_tokens += len(self._prompt_ids)
        self._last_output_s = time.time()
        for completion in output.outputs:
            context.response_tokens += len(completion.token_ids)
            if self.chat.recorded:
                _append(self._choices[completion.index], completion)

    def broke_format(self, output: Any) -> bool:
        """Return whether vLLM gave up a response because its format or schema allows no further token.

        That is an error of the request: a schema beyond the compiler's limits, or one that other parameters contradict.
        """
        constrained = self._params.structured_outputs is not None
        return constrained and any(completion.finish_reason == "error" for completion in output.outputs)

    def abort(self) -> None:
        """Add what the engine's collector still held when the request was aborted.

        vLLM ends an aborted request with a last output. A client that wanted the whole response at once has seen
        nothing, so that output counts as it is; of a stream only the versions of what was yielded are taken from it.
        """
        last = self.queue.output if self.queue is not None else None
        if last is None or isinstance(last, Exception):
            return
        self.queue.output = None
        if not self._prompt_ids:
            self.add(last)
        else:
            self.chat.context.response_tokens += sum(len(completion.token_ids) for completion in last.outputs)
        for completion in last.outputs:
            choice = self._choices.get(completion.index)
            if choice is not None and not choice.finish_reason:
                choice.versions = completion.weight_versions or ()

    def responses(self) -> list[EngineResponse]:
        """Return the responses with at least one token; unfinished ones count as aborted. Raises DataError."""
        choices = sorted(self._choices.items())
        return [
            self._response(index, choice)
            for index, choice in choices
            if choice.ids or choice.finish_reason in _FINISHED
        ]

    def _response(self, index: int, choice: _Choice) -> EngineResponse:
        finish_reason = _FINISHED.get(choice.finish_reason, FinishReason.ABORT)
        aborted = finish_reason is FinishReason.ABORT
        return EngineResponse(
            choice=index,
            response=choice.text,
            response_calls=self._calls_of(choice.text, choice.ids) if self._calls_of is not None else (),
            prompt_ids=tuple(self._prompt_ids),
            response_ids=tuple(choice.ids),
            response_logprobs=tuple(choice.logprobs),
            version_spans=self._spans(choice),
            finish_reason=finish_reason,
            sampling=sampling_of(self._params, index),
            adapter=self.chat.context.adapter,
            # The user saw an aborted response's last token when it came, not when the disconnect was noticed.
            finished_at_s=self._last_output_s if aborted else None,
        )

    def _spans(self, choice: _Choice) -> tuple[VersionSpan, ...]:
        num_ids = len(choice.ids)
        if self.chat.release_version is not None:
            return (VersionSpan(policy_version=self.chat.release_version, start=0, end=num_ids),)
        return tuple(
            VersionSpan(policy_version=int(span.version), start=span.start, end=min(span.end, num_ids))
            for span in choice.versions
            if span.start < num_ids or not num_ids
        )


def sampling_of(params: Any, choice: int = 0) -> Sampling:
    """Return the distribution that vLLM's `SamplingParams` draw the tokens of a choice from."""
    constraints = (params.structured_outputs, params.logit_bias, params.allowed_token_ids, params.bad_words)
    forced = params.min_tokens > 0 or getattr(params, "thinking_token_budget", None) is not None
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        max_tokens=params.max_tokens or 0,
        # vLLM adds the choice's index to the seed.
        seed=params.seed if params.seed is None else params.seed + choice,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        constrained=forced or any(constraints),
    )


def _append(choice: _Choice, completion: Any) -> None:
    choice.text += completion.text
    choice.ids += completion.token_ids
    choice.logprobs += [
        # `serve.upstream.vllm.logprobs` gives floats where only the recorder wants log-probs.
        at if isinstance(at, float) else at[token].logprob
        for at, token in zip(completion.logprobs or (), completion.token_ids, strict=True)
    ]
    if completion.finish_reason is not None:
        choice.finish_reason = completion.finish_reason
        choice.versions = completion.weight_versions or ()
