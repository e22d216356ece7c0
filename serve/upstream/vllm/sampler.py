"""vLLM's sampler, cheaper where only the sampled tokens' log-probs are wanted, as recording does. Runs in the worker.

vLLM also ranks each token, which compares its log-prob with the whole vocabulary's and is two thirds of the cost of a
log-prob; and to send a step's log-probs, it encodes three arrays for each request.
"""

from typing import Any

import torch
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.sample.sampler import Sampler

_UNRANKED = ("<i8", (1,), bytes(8))


class _Step(LogprobsLists):  # type: ignore[misc]
    """`LogprobsLists` of a step in which requests get one token each; a slice of it is encoded already.

    Arrays are sent as dtype, shape and bytes (`vllm/v1/serial_utils.py`), and decoded into arrays again.
    """

    _ids: bytes
    _logprobs: bytes

    @classmethod
    def of(cls, lists: LogprobsLists) -> "_Step":
        step = cls(*lists)
        step._ids, step._logprobs = step.logprob_token_ids.tobytes(), step.logprobs.tobytes()
        return step

    def slice_request(self, req_idx: int, num_positions: int) -> LogprobsLists:
        if num_positions != 1:
            return super().slice_request(req_idx, num_positions)
        start, end = 4 * req_idx, 4 * req_idx + 4
        ids, logprobs = ("<i4", (1, 1), self._ids[start:end]), ("<f4", (1, 1), self._logprobs[start:end])
        return LogprobsLists(ids, logprobs, _UNRANKED)


class _OnCpu(LogprobsTensors):  # type: ignore[misc]
    def tolists(self, cu_num_generated_tokens: list[int] | None = None) -> LogprobsLists:
        lists = super().tolists(cu_num_generated_tokens)
        return _Step.of(lists) if lists.cu_num_generated_tokens is None else lists


class LeanSampler(Sampler):  # type: ignore[misc]
    """Sampler that gives rank 0 where every request of a batch wants the sampled token's log-prob alone.

    No response of OpenAI's API shows the rank. Prompt log-probs, where vLLM shows ranks, keep them.
    """

    _sampling = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._sampling = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._sampling = False

    def gather_logprobs(self, logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        if num_logprobs or not self._sampling:
            return super().gather_logprobs(logprobs, num_logprobs, token_ids)
        ids = token_ids.unsqueeze(-1)
        found = (ids.to(torch.int32), logprobs.gather(-1, ids), torch.zeros_like(token_ids))
        return _OnCpu(*found) if ids.is_cpu else LogprobsTensors(*found)


def use_lean_sampler(model_runner: Any) -> None:
    """Replace the sampler of vLLM's model runner."""
    sampler = model_runner.sampler
    model_runner.sampler = LeanSampler(sampler.logprobs_mode, sampler.use_fp64_gumbel)
