"""Causal attention within each of several packed sequences, without padding and without an S by S mask.

Registered with transformers under `PACKED`. On a GPU in bf16 or fp16 it is torch's variable-length FlashAttention;
elsewhere one call of `scaled_dot_product_attention` per sequence. All other layers treat the packed row as one.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PACKED = "sdpo_packed"


def packed_attention(
    module: Any,
    query_1HSD: Tensor,
    key_1KSD: Tensor,
    value_1KSD: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention [1, S, H, D] of sequences that end at `cu_seq_lens_q[1:]`; H query heads, K key heads."""
    window = sliding_window or max_length_q
    if query_1HSD.is_cuda and query_1HSD.dtype in (torch.bfloat16, torch.float16):
        return _flash(query_1HSD, key_1KSD, value_1KSD, scaling, cu_seq_lens_q, max_length_q, window), None
    groups = query_1HSD.shape[1] // key_1KSD.shape[1]
    key_1HSD, value_1HSD = (each.repeat_interleave(groups, dim=1) for each in (key_1KSD, value_1KSD))
    bounds = cu_seq_lens_q.tolist()
    parts = [
        scaled_dot_product_attention(
            query_1HSD[:, :, start:end],
            key_1HSD[:, :, start:end],
            value_1HSD[:, :, start:end],
            attn_mask=_band(end - start, window, query_1HSD.device),
            is_causal=end - start <= window,
            scale=scaling,
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def register() -> None:
    """Register `attn_implementation=PACKED` with transformers; safe to repeat."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def _flash(
    query_1HSD: Tensor, key_1KSD: Tensor, value_1KSD: Tensor, scaling: float, bounds: Tensor, longest: int, window: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    packed = (each[0].transpose(0, 1) for each in (query_1HSD, key_1KSD, value_1KSD))
    mixed: Tensor = varlen_attn(
        *packed, bounds, bounds, longest, longest, scale=scaling, window_size=(window - 1, 0), enable_gqa=True
    )
    return mixed[None]


def _band(length: int, window: int, device: torch.device) -> Tensor | None:
    """Mask of a sequence longer than the model's sliding window; None where it would equal plain causal attention."""
    if length <= window:
        return None
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril() & every.triu(1 - window)
