"""RMS norms by vLLM's own CPU kernels, which its wheel contains and does not use.

vLLM 0.32 leaves its kernels to GPUs (`vllm/kernels/vllm_c.py`): on a CPU a norm is seven torch operations, and
norms are a sixth of a small model's step. Import this before the model is made, in the process that makes it.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm

_VECTOR = 16
"""Floats in a vector: the kernels take rows of whole vectors (`csrc/cpu/layernorm.cpp`)."""


@RMSNorm.register_oot(name="RMSNorm")
class KernelRMSNorm(RMSNorm):  # type: ignore[misc]
    """RMSNorm on the CPU: by the kernels where they fit, and else by torch, with the same result within 1e-6."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In 16 bits the kernels round once less than torch does, and than the trainer does.
        plain = self.has_weight and self.variance_size_override is None and self.weight.dtype == torch.float32
        self._fits = plain and self.hidden_size % _VECTOR == 0

    def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """As `RMSNorm.forward_native`; with a residual, both are overwritten."""
        if not self._fits or x.dtype != torch.float32:
            return self.forward_native(x, residual)
        if residual is None:
            # The kernel reads contiguous rows, and gives nonsense for others, as heads of queries and keys are.
            x = x.contiguous()
            normed = torch.empty_like(x)
            torch.ops._C.rms_norm(normed, x, self.weight, self.variance_epsilon)
            return normed
        if not (x.is_contiguous() and residual.is_contiguous()):
            return self.forward_native(x, residual)
        torch.ops._C.fused_add_rms_norm(x, residual, self.weight, self.variance_epsilon)
        return x, residual
