"""Exact LoRA on the CPU: each row of a batch gets its own adapter, and a row without one gets none.

vLLM 0.32's CPU kernels take a row's adapter slot as an index, and -1 for "no adapter": in a batch that mixes both,
index -1 is the last slot, so requests without an adapter are answered by another user's
(`vllm/lora/ops/torch_ops/lora_ops.py`). These products also read each adapter once a batch, not once a row.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def add_products(
    y: Tensor,
    x: Tensor,
    slots: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    *,
    scale: float,
    widths: Sequence[int],
) -> None:
    """Add scale * B A x to `y` in place, adapter by adapter, the parts of a fused layer beside each other.

    `x` (rows, in), `y` (rows, sum of widths); `slots` (rows,) is -1 for rows without an adapter. `downs`
    (slot, 1, rank, in) and `ups` (slot, 1, out, rank) have one tensor a part, and `widths` their outs without padding.
    """
    for slot in slots.unique().tolist():
        if slot < 0:
            continue
        rows = (slots == slot).nonzero()[:, 0]
        chosen, start = x[rows].float(), 0
        for down, up, width in zip(downs, ups, widths, strict=True):
            delta = chosen @ down[slot, 0].float().T @ up[slot, 0, :width].float().T
            y[rows, start : start + width] += (scale * delta).to(y.dtype)
            start += width


def use_exact_products(manager: Any) -> None:
    """Replace the LoRA products of every linear layer of vLLM's `LRUCacheWorkerLoRAManager` by `add_products`."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class ExactPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
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
            if not self.no_lora:
                y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
                slots = self.token_lora_indices
                add_products(y, x, slots, lora_a_stacked, lora_b_stacked, scale=scale, widths=output_slices)

    for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
        wrapper.__class__ = ExactPunicaWrapper
