"""One request in the engine: what has come out of it so far, and what that is recorded as.

Text, token ids, log-probs, finish reason and weight versions are read from vLLM's own outputs, never made again.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdpo_ray.capture.recorder import EngineResponse
from sdpo_ray.records import FinishReason, Sampling, ToolCall, VersionSpan
from serve.request_context import ChatContext

CallsOf = Callable[[str, Sequence[int]], tuple[ToolCall, ...]]
"""Calls of tools that a client is shown for this text and these token ids."""

_FINISHED = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "repetition": FinishReason.LENGTH}
"""By vLLM's word. What it stopped for repeating itself is cut; any other word means an answer that was broken off."""


@dataclass(slots=True)
class _Choice:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: str = ""
    """vLLM's finish reason."""
    versions: Sequence[Any] = ()


class RequestRecorder:
    """Follows a request's outputs, each of which brings what is new. Made by `serve.engine.recording_engine`; for one task."""

    def __init__(self, exchange: ChatContext, params: Any, calls_of: CallsOf | None) -> None:
        self.exchange = exchange
        self.queue: Any = None
        """vLLM's collector of this request's outputs, once the engine has the request."""
        self.settled = False
        """Whether somebody took its answers to record them."""
        self._params = params
        self._calls_of = calls_of
        self._prompt_ids: Sequence[int] = ()
        self._choices: dict[int, _Choice] = defaultdict(_Choice)
        self._last_output_s = 0.0

    def see(self, output: Any) -> None:
        """Take in one more `vllm.RequestOutput`."""
        visit = self.exchange.visit
        if not self._prompt_ids:
            self._prompt_ids = output.prompt_token_ids or ()
            visit.prompt_tokens += len(self._prompt_ids)
        self._last_output_s = time.time()
        for completion in output.outputs:
            visit.response_tokens += len(completion.token_ids)
            if self.exchange.recorded:
                _add(self._choices[completion.index], completion)

    def lost_its_format(self, output: Any) -> bool:
        """Whether vLLM gave up an answer because no token was left that its format or schema allows.

        That is the client's: a schema too large for its compiler's limits, or one that other parameters contradict.
        """
        constrained = self._params.structured_outputs is not None
        return constrained and any(completion.finish_reason == "error" for completion in output.outputs)

    def break_off(self) -> None:
        """Take in what the engine still had when the request was aborted.

        vLLM ends an aborted request with a last output. A client who had asked for the whole answer at once has seen
        nothing, so it counts as it is; of a stream only the versions of what was handed on are taken from it.
        """
        last = self.queue.output if self.queue is not None else None
        if last is None or isinstance(last, Exception):
            return
        self.queue.output = None
        if not self._prompt_ids:
            self.see(last)
        else:
            self.exchange.visit.response_tokens += sum(len(completion.token_ids) for completion in last.outputs)
        for completion in last.outputs:
            choice = self._choices.get(completion.index)
            if choice is not None and not choice.ended:
                choice.versions = completion.weight_versions or ()

    def answers(self) -> list[EngineResponse]:
        """The answers with at least one token; those that have not ended were broken off. Raises DataError."""
        made = sorted(self._choices.items())
        return [self._answered(index, choice) for index, choice in made if choice.ids or choice.ended in _FINISHED]

    def _answered(self, index: int, choice: _Choice) -> EngineResponse:
        finish_reason = _FINISHED.get(choice.ended, FinishReason.ABORT)
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
            adapter=self.exchange.visit.adapter,
            # Of an answer that was broken off the user saw the last when it came, not when we noticed that they left.
            finished_at_s=self._last_output_s if aborted else None,
        )

    def _spans(self, choice: _Choice) -> tuple[VersionSpan, ...]:
        num_ids = len(choice.ids)
        if self.exchange.release_version is not None:
            return (VersionSpan(policy_version=self.exchange.release_version, start=0, end=num_ids),)
        return tuple(
            VersionSpan(policy_version=int(span.version), start=span.start, end=min(span.end, num_ids))
            for span in choice.versions
            if span.start < num_ids or not num_ids
        )


def sampling_of(params: Any, choice: int = 0) -> Sampling:
    """What vLLM's `SamplingParams` say of the distribution that tokens were drawn from."""
    constraints = (params.structured_outputs, params.logit_bias, params.allowed_token_ids, params.bad_words)
    forced = params.min_tokens > 0 or getattr(params, "thinking_token_budget", None) is not None
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        max_tokens=params.max_tokens or 0,
        # vLLM counts the seed up over the choices.
        seed=params.seed if params.seed is None else params.seed + choice,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        constrained=forced or any(constraints),
    )


def _add(choice: _Choice, completion: Any) -> None:
    choice.text += completion.text
    choice.ids += completion.token_ids
    choice.logprobs += [
        # Where the recorder asked alone, `serve.engine.logprobs` has them as numbers.
        at if isinstance(at, float) else at[token].logprob
        for at, token in zip(completion.logprobs or (), completion.token_ids, strict=True)
    ]
    if completion.finish_reason is not None:
        choice.ended = completion.finish_reason
        choice.versions = completion.weight_versions or ()
