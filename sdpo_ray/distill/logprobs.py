"""log p(y | context) at response positions only, without the logits of a whole batch at once.

    z = h W^T / temperature        lp = z[y] - logsumexp(z)        d lp / d z = onehot(y) - softmax(z)

N scored tokens, D hidden size, V vocabulary. Logits exist for `chunk_tokens` tokens at a time and are made
again in the backward pass; softmax is in fp32 or better.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdpo_ray.distill.packing import Rows
from sdpo_ray.errors import ConfigError

CHUNK_TOKENS = 1024


def linear_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature_N: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """Natural log-probs [N] of the targets. Gradients reach `hidden_ND` and `weight_VD`."""
    return _LinearLogprobs.apply(hidden_ND, weight_VD, target_N, temperature_N, chunk_tokens)


class ResponseScorer(nn.Module):  # type: ignore[misc]
    """A causal language model of transformers that scores the responses in `Rows`.

    The output weights belong to a module of their own, so that ZeRO-3 gathers them once for all chunks.
    Raises ConfigError for models whose logits are more than hidden states times output weights.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        output = model.get_output_embeddings()
        if getattr(output, "bias", None) is not None or getattr(model.config, "final_logit_softcapping", None):
            raise ConfigError(f"{type(model).__name__} has an output bias or capped logits: not supported")
        self.body = model.base_model
        self.head = _Head(output.weight)

    def forward(self, rows: Rows) -> Tensor:
        """Log-probs [N] of the scored tokens of `rows`."""
        hidden_BSD = self.body(input_ids=rows.ids_BS, use_cache=False).last_hidden_state
        scored: Tensor = self.head(hidden_BSD[rows.row_N, rows.position_N], rows.target_N, rows.temperature_N)
        return scored


class _Head(nn.Module):  # type: ignore[misc]
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_ND: Tensor, target_N: Tensor, temperature_N: Tensor) -> Tensor:
        return linear_logprobs(hidden_ND, self.weight, target_N, temperature_N)


class _LinearLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature_N: Tensor, chunk_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, temperature_N)
        ctx.chunk_tokens = chunk_tokens
        logprobs = [
            _logits(hidden_CD, weight_VD, temperature_C).log_softmax(-1).gather(-1, target_C[:, None])[:, 0]
            for hidden_CD, target_C, temperature_C in zip(
                hidden_ND.split(chunk_tokens),
                target_N.split(chunk_tokens),
                temperature_N.split(chunk_tokens),
                strict=True,
            )
        ]
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, weight_VD, target_N, temperature_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=grad_N.dtype)
        for start in range(0, len(hidden_ND), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            grad_CV = _logits(hidden_ND[chunk], weight_VD, temperature_N[chunk]).softmax(-1).neg_()
            grad_CV.scatter_add_(-1, target_N[chunk, None], torch.ones_like(grad_N[chunk, None]))
            grad_CV *= (grad_N[chunk] / temperature_N[chunk])[:, None]
            grad_hidden_ND[chunk] = grad_CV.to(weight_VD.dtype) @ weight_VD
            grad_weight_VD += grad_CV.T @ hidden_ND[chunk].to(grad_CV.dtype)
        return grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype), None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature_C: Tensor) -> Tensor:
    logits_CV = hidden_CD @ weight_VD.T
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)) / temperature_C[:, None]
