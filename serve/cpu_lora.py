"""LoRA on the CPU, exactly: each row of a batch gets its own adapter, and a row without one gets none.

vLLM 0.32's CPU kernels take the adapter's slot of a row as an index, and -1 for "no adapter": in a batch that mixes
both, that is the last slot, so people without an adapter are answered by somebody else's
(`vllm/lora/ops/torch_ops/lora_ops.py`). These products also read each adapter once a batch, not once a row.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nonzero
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class ExactProducts(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's wrapper with the products of its linear layers replaced."""

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        """y[rows] += scale B A x[rows], adapter by adapter, a layer's slices beside each other."""
        if self.no_lora:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        slots = self.token_lora_indices
        for slot in slots.unique().tolist():
            if slot < 0:
                continue
            rows = nonzero(slots == slot)[:, 0]
            chosen, start = x[rows].float(), 0
            for down, up, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                delta = chosen @ down[slot, 0].float().T @ up[slot, 0, :width].float().T
                y[rows, start : start + width] += (scale * delta).to(y.dtype)
                start += width


def use_exact_products(manager: Any) -> None:
    """Give every LoRA layer of vLLM's `LRUCacheWorkerLoRAManager` these products."""
    for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
        wrapper.__class__ = ExactProducts
