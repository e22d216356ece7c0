"""vLLM's async engine, with two additions: requests pass a gate, and finished answers are recorded.

Token ids, sampling log-probs, finish reason and policy version are read from the engine's own output. The
last output of a recorded answer is handed on only after its turn is on disk.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from sdpo_ray.capture.recorder import Answered, Recorder
from sdpo_ray.records import FinishReason, Sampling, VersionSpan
from serve.exchange import EXCHANGE, Exchange
from serve.swap import Gate

_FINGERPRINT = "fingerprint-"
_DRAIN_POLL_S = 0.005


@dataclass(slots=True)
class _Choice:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class RecordingLLM(AsyncLLM):  # type: ignore[misc]
    """AsyncLLM that `serve.swap` can steer and `capture.recorder` can read."""

    gate: Gate
    recorder: Recorder | None
    policy_version: int

    async def add_request(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        if request_id.startswith(_FINGERPRINT):
            return await super().add_request(request_id, *args, **kwargs)
        async with self.gate.entering():
            return await super().add_request(request_id, *args, **kwargs)

    def generate(self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any) -> Any:
        # The context is read at the call: vLLM runs the generator's body in another task.
        exchange = EXCHANGE.get()
        if exchange is None:
            return super().generate(prompt, sampling_params, request_id, **kwargs)
        if exchange.recorded and sampling_params.logprobs is None:
            sampling_params.logprobs = 0
        outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
        return self._observed(exchange, sampling_params, outputs)

    async def _observed(
        self, exchange: Exchange, params: SamplingParams, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        choices: dict[int, _Choice] = defaultdict(_Choice)
        answers: list[Answered] = []
        async for output in outputs:
            if exchange.visit.policy_version is None:
                exchange.visit.policy_version = self.policy_version
            for completion in output.outputs:
                choice = choices[completion.index]
                choice.text += completion.text
                choice.ids += completion.token_ids
                if exchange.recorded:
                    choice.logprobs += _sampled_logprobs(completion)
                if completion.finish_reason is not None:
                    answers.append(_answered(output, completion, choice, params))
            asked = exchange.asked
            if output.finished and exchange.recorded and asked is not None and self.recorder is not None:
                stored = [await self.recorder.record(asked, answer) for answer in answers]
                exchange.receipt = all(stored)
            yield output

    async def stage(self, path: str) -> None:
        """Read the weights at `path` in every worker, without touching the model."""
        await self.collective_rpc("stage_weights", args=(path,))

    async def drained(self) -> None:
        """Return when the engine has finished every request; call it with the gate held."""
        while self.output_processor.has_unfinished_requests():
            await asyncio.sleep(_DRAIN_POLL_S)

    async def load(self, policy_version: int) -> None:
        """Put the staged weights into the model. The pause clears the prefix cache, which holds the old ones."""
        await self.pause_generation(mode="wait", clear_cache=True)
        await self.collective_rpc("load_staged")
        await self.label(policy_version)
        await self.resume_generation()

    async def label(self, policy_version: int) -> None:
        """Name the loaded weights, so that the engine marks every output token with them."""
        await self.update_weight_version(str(policy_version))
        self.policy_version = policy_version

    async def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        """log p(token_ids[i + 1] | token_ids[:i + 1]) under the loaded weights, past the gate."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        (rendered,) = self.renderer.render_cmpl([prompt], self.renderer.default_cmpl_tok_params)
        final = None
        async for output in super().generate(rendered, params, _FINGERPRINT + uuid4().hex):
            final = output
        positions = (final.prompt_logprobs if final is not None else None) or []
        return tuple(
            float(position[token].logprob)
            for position, token in zip(positions[1:], token_ids[1:], strict=True)
            if position is not None
        )


def _sampled_logprobs(completion: CompletionOutput) -> list[float]:
    logprobs = completion.logprobs or []
    return [float(position[token].logprob) for position, token in zip(logprobs, completion.token_ids, strict=True)]


def _answered(output: RequestOutput, completion: CompletionOutput, choice: _Choice, params: SamplingParams) -> Answered:
    spans = completion.weight_versions or []
    return Answered(
        choice=completion.index,
        response=choice.text,
        prompt_ids=tuple(output.prompt_token_ids or ()),
        response_ids=tuple(choice.ids),
        response_logprobs=tuple(choice.logprobs),
        version_spans=tuple(
            VersionSpan(policy_version=int(span.version), start=span.start, end=span.end) for span in spans
        ),
        finish_reason=FinishReason(completion.finish_reason or FinishReason.ABORT),
        sampling=Sampling(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            max_tokens=params.max_tokens or 0,
            seed=params.seed,
        ),
    )
