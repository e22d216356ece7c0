"""vLLM's sampler, which ranks no token whose rank nobody reads. Runs in vLLM's worker.

A rank compares a log-prob with those of the whole vocabulary: two thirds of what a sampled token's log-prob costs.
"""

from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler


class LeanSampler(Sampler):  # type: ignore[misc]
    """Gives the rank 0 where every request of a batch wants the sampled token's log-prob alone.

    No answer of OpenAI's API shows it. Log-probs of prompts, where vLLM shows ranks, keep them.
    """

    _samples = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._samples = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._samples = False

    def gather_logprobs(self, logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        if num_logprobs or not self._samples:
            return super().gather_logprobs(logprobs, num_logprobs, token_ids)
        ids = token_ids.unsqueeze(-1)
        return LogprobsTensors(ids.to(torch.int32), logprobs.gather(-1, ids), torch.zeros_like(token_ids))
