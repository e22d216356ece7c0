"""Sampled tokens' log-probs as floats, for requests whose client does not ask for log-probs.

vLLM turns the token beside every log-prob into text once more: half of what a token costs the server's process in
vLLM's output processor. A client that asks for log-probs gets vLLM's own.
"""

from contextvars import ContextVar
from typing import Any

from vllm.v1.engine import output_processor
from vllm.v1.engine.logprobs import LogprobsProcessor

RECORDED_ALONE: ContextVar[bool] = ContextVar("recorded_alone", default=False)
"""True while a request is added to the engine whose log-probs only the recorder reads."""


class SampledLogprobs(LogprobsProcessor):  # type: ignore[misc]
    """Keeps a float where vLLM's own keeps a dict for each position. Counts, slices and merges the same way."""

    @classmethod
    def from_new_request(cls, tokenizer: Any, request: Any) -> LogprobsProcessor:
        """Return one of this class where `RECORDED_ALONE` is set, and else vLLM's own."""
        if not RECORDED_ALONE.get():
            return LogprobsProcessor.from_new_request(tokenizer, request)
        alone = super().from_new_request(None, request)
        alone.logprobs = []
        return alone

    def _update_sample_logprobs(self, logprobs_lists: Any) -> None:
        self.logprobs += logprobs_lists.logprobs[:, 0].tolist()


def install() -> None:
    """Let every engine of this process use `SampledLogprobs`."""
    output_processor.LogprobsProcessor = SampledLogprobs
