"""A transformers causal language model over packed rows: hidden states at scored positions, and output weights."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sdpo_ray.distill.data.packing import PackedRows
from sdpo_ray.distill.model.lm_head import logprobs
from sdpo_ray.errors import ConfigError

Work = Callable[[Tensor, Tensor], Any]
"""A function of hidden states [N, D] at the scored positions and the output weights [V, D]."""


class PackedLM(nn.Module):  # type: ignore[misc]
    """`forward(rows, work)` returns `work(hidden [N, D], weights [V, D])`.

    The output weights are in a module of their own, so that ZeRO-3 gathers them once for all chunks. Raises ConfigError
    for a model whose logits are not hidden states times output weights.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        output = model.get_output_embeddings()
        if getattr(output, "bias", None) is not None or getattr(model.config, "final_logit_softcapping", None):
            raise ConfigError(f"{type(model).__name__} has an output bias or capped logits: not supported")
        self.body = model.base_model
        self.head = _Head(output.weight)

    def forward(self, rows: PackedRows, work: Work) -> Any:
        hidden_1SD = self.body(
            input_ids=rows.ids_1S,
            position_ids=rows.positions_1S,
            use_cache=False,
            cu_seq_lens_q=rows.bounds,
            cu_seq_lens_k=rows.bounds,
            max_length_q=rows.longest,
            max_length_k=rows.longest,
        ).last_hidden_state
        return self.head(hidden_1SD[0, rows.scored_N], work)


def scores_of(rows: PackedRows, logits_mib: int) -> Work:
    """Work that returns log p [N] of the scored tokens, without gradient."""

    def work(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return logprobs(hidden_ND, weight_VD, rows.target_N, rows.temperature_N, logits_mib=logits_mib)

    return work


class _Head(nn.Module):  # type: ignore[misc]
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_ND: Tensor, work: Work) -> Any:
        return work(hidden_ND, self.weight)
