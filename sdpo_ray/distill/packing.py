"""Examples to micro-batches of bounded size, alike on every worker.

Rows are filled up on the right under a causal mask, so what fills them is never attended to by a real
token and no attention mask is needed; which positions are scored follows from lengths alone.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_ray.distill.hindsight import Example

MicroBatch = tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One context of a micro-batch as tensors: B rows of S tokens, N scored tokens in all rows."""

    ids_BS: Tensor
    row_N: Tensor
    """The row of each scored token, ascending."""
    position_N: Tensor
    """The position whose hidden state predicts the scored token: one before it."""
    target_N: Tensor
    temperature_N: Tensor


def batches(examples: Sequence[Example], batch_size: int, epochs: int, seed: int) -> Iterator[list[Example]]:
    """The first epoch in the given order, later ones shuffled by `seed`; the last batch may be short."""
    for epoch in range(epochs):
        order = list(examples)
        if epoch:
            random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[MicroBatch]:
    """Longest first, rows times longest row at most `max_tokens`; an example over it is alone."""
    packed: list[MicroBatch] = []
    filling: list[Example] = []
    for item in sorted(examples, key=lambda item: (-_length(item), item.interaction_id)):
        if filling and _length(filling[0]) * (len(filling) + 1) > max_tokens:
            packed.append(tuple(filling))
            filling = []
        filling.append(item)
    return [*packed, tuple(filling)] if filling else packed


def shard(batch: Sequence[Example], *, rank: int, num_workers: int, max_tokens: int) -> list[MicroBatch]:
    """The micro-batches of one worker, as many as the busiest worker has: the rest are empty.

    ZeRO gathers and reduces in every pass, so the workers must make the same number of them.
    """
    packed = [micro_batches(batch[worker::num_workers], max_tokens) for worker in range(num_workers)]
    most = max(len(mine) for mine in packed)
    return packed[rank] + [()] * (most - len(packed[rank]))


def rows(micro_batch: MicroBatch, *, hindsight: bool, device: torch.device | None = None) -> Rows:
    """The tensors of context (x, o) or x. An empty micro-batch is one row in which nothing is scored."""
    contexts = [item.hindsight_ids if hindsight else item.prompt_ids for item in micro_batch]
    texts = [context + item.response_ids for context, item in zip(contexts, micro_batch, strict=True)]
    width = max(map(len, texts), default=1)
    filled = [text + (0,) * (width - len(text)) for text in texts] or [(0,)]
    counts = [len(item.response_ids) for item in micro_batch]
    positions = [len(context) - 1 + t for context, n in zip(contexts, counts, strict=True) for t in range(n)]
    return Rows(
        ids_BS=torch.tensor(filled, dtype=torch.long, device=device),
        row_N=_spread(list(range(len(counts))), counts, torch.long, device),
        position_N=torch.tensor(positions, dtype=torch.long, device=device),
        target_N=torch.tensor([y for item in micro_batch for y in item.response_ids], dtype=torch.long, device=device),
        temperature_N=_spread([item.temperature for item in micro_batch], counts, torch.float32, device),
    )


def _length(item: Example) -> int:
    return max(len(item.prompt_ids), len(item.hindsight_ids)) + len(item.response_ids)


def _spread(values: Sequence[float], counts: Sequence[int], dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Each value repeated for every scored token of its row."""
    repeats = torch.tensor(counts, dtype=torch.long, device=device)
    return torch.tensor(values, dtype=dtype, device=device).repeat_interleave(repeats)
