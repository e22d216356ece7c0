"""The output layer over scored positions, a chunk of logits at a time: log-probs, and a loss with its gradient.

    z = h W^T / temperature        N scored tokens, D hidden size, V vocabulary, C tokens of one chunk

A caller that needs the gradient gives a function from one chunk's logits to a loss and dL/dz. dL/dh and dL/dW are then
computed in the forward pass from the same logits, and the backward pass only scales them. The logits of a whole batch
never exist at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gradient = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Logits [C, V] of a slice of N -> the slice's part of the loss, and its gradient [C, V]; may overwrite the logits."""


def logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature_N: Tensor, *, logits_mib: int
) -> Tensor:
    """Natural log-probs [N] of the targets, without gradient, in fp32 or better."""
    with torch.no_grad():
        parts = chunks(len(hidden_ND), len(weight_VD), logits_mib)
        head = _Head(weight_VD, longest=_longest(parts, len(hidden_ND)))
        found = [score_(head.logits(hidden_ND[chunk], temperature_N[chunk]), target_N[chunk])[0] for chunk in parts]
    return torch.cat(found) if found else hidden_ND.new_zeros(0, dtype=_at_least_float32(hidden_ND.dtype))


def fused_loss(
    hidden_ND: Tensor, weight_VD: Tensor, temperature_N: Tensor, gradient: Gradient, *, logits_mib: int
) -> Tensor:
    """The sum of all chunks' losses, a scalar with gradients of `hidden_ND` and `weight_VD`."""
    return _FusedLoss.apply(hidden_ND, weight_VD, temperature_N, gradient, logits_mib)


def chunks(num_tokens: int, vocabulary: int, logits_mib: int) -> list[slice]:
    """Slices of N whose fp32 logits take at most `logits_mib` MiB, of at least one token each."""
    size = max(1, logits_mib * 2**20 // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


def logits(hidden_CD: Tensor, weight_VD: Tensor, temperature_C: Tensor) -> Tensor:
    """Logits [C, V] of one chunk, in fp32 or better."""
    return _Head(weight_VD).logits(hidden_CD, temperature_C)


def score_(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [C] of the targets, and the row sums [C, 1] of exp(z - max z), which overwrites `logits_CV`.

    In place, since on a CPU allocating a tensor of this size costs more than the exponential.
    """
    chosen_C = logits_CV.gather(-1, target_C[:, None])[:, 0]
    most_C1 = logits_CV.amax(-1, keepdim=True)
    total_C1 = logits_CV.sub_(most_C1).exp_().sum(-1, keepdim=True)
    return chosen_C - (most_C1 + total_C1.log())[:, 0], total_C1


class _FusedLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, temperature_N: Tensor, gradient: Gradient, logits_mib: int
    ) -> Tensor:
        parts = chunks(len(hidden_ND), len(weight_VD), logits_mib)
        head = _Head(weight_VD, longest=_longest(parts, len(hidden_ND)))
        precise = _at_least_float32(hidden_ND.dtype)
        loss = torch.zeros((), dtype=precise, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=precise) if ctx.needs_input_grad[1] else None
        for chunk in parts:
            part, grad_CV = gradient(head.logits(hidden_ND[chunk], temperature_N[chunk]), chunk)
            loss += part
            grad_CV /= temperature_N[chunk, None]
            grad_hidden_ND[chunk] = head.back(grad_CV)
            if grad_weight_VD is not None:
                head.accumulate(grad_weight_VD, grad_CV, hidden_ND[chunk])
        ctx.weight_dtype = weight_VD.dtype
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden_ND.mul_(scale.to(grad_hidden_ND.dtype)), grad_weight_VD, None, None, None


class _Head:
    """Products with the output weights, summed in fp32: bf16 logits between 16 and 32 are .125 apart."""

    def __init__(self, weight_VD: Tensor, longest: int = 0) -> None:
        precise = _at_least_float32(weight_VD.dtype)
        # A GPU multiplies bf16 factors into fp32; a CPU needs fp32 factors.
        self._mixed = weight_VD.is_cuda and weight_VD.dtype != precise
        self._weight_VD = weight_VD if self._mixed else weight_VD.to(precise)
        # All chunks use the same memory, one at a time.
        self._chunk_CV = self._weight_VD.new_empty(0 if self._mixed else longest, len(weight_VD))

    def logits(self, hidden_CD: Tensor, temperature_C: Tensor) -> Tensor:
        """Logits [C, V]; valid until the next call where the head was made with `longest`."""
        if len(self._chunk_CV):
            out_CV = self._chunk_CV[: len(hidden_CD)]
            torch.mm(hidden_CD.to(self._weight_VD.dtype), self._weight_VD.T, out=out_CV)
        else:
            out_CV = self._product(hidden_CD, self._weight_VD.T)
        return out_CV.div_(temperature_C[:, None])

    def back(self, grad_CV: Tensor) -> Tensor:
        return self._product(grad_CV, self._weight_VD)

    def accumulate(self, grad_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        if self._mixed:
            grad_VD += self._product(grad_CV.T, hidden_CD)
        else:
            grad_VD.addmm_(grad_CV.T, hidden_CD.to(grad_CV.dtype))

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        if self._mixed:
            return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
        return left.to(right.dtype) @ right


def _longest(parts: Sequence[slice], num_tokens: int) -> int:
    return min(parts[0].stop, num_tokens) if parts else 0


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
