"""Sampled tokens' log-probs as plain numbers where nobody but the recorder asked for them.

vLLM turns the token beside every log-prob into text once more: a third of what recording costs its process. Whoever
asks for log-probs gets vLLM's own.
"""

from contextvars import ContextVar
from typing import Any

from vllm.v1.engine import output_processor
from vllm.v1.engine.logprobs import LogprobsProcessor

RECORDED_ALONE: ContextVar[bool] = ContextVar("recorded_alone", default=False)
"""True while a request is added to the engine whose log-probs nobody but the recorder asked for."""


class SampledLogprobs(LogprobsProcessor):  # type: ignore[misc]
    """Keeps floats where vLLM's own keeps a dict for each position. Counts, slices and merges the same way."""

    @classmethod
    def from_new_request(cls, tokenizer: Any, request: Any) -> LogprobsProcessor:
        """This one where the recorder asks alone, vLLM's own for everybody else."""
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
