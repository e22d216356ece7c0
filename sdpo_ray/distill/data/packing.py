"""Examples to micro-batches of bounded size, alike on every worker, and a micro-batch to one row without padding.

Sequences lie one behind the other; `bounds` tells attention where each begins. Which positions are scored follows
from lengths alone, so no token can be mistaken for padding.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_ray.distill.data.examples import Example

MicroBatch = tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """One context of a micro-batch as tensors: B sequences of S tokens in all, N of them scored."""

    ids_1S: Tensor
    positions_1S: Tensor
    """Each token's place in its own sequence."""
    bounds: Tensor
    """Where each sequence begins, and where the last one ends, [B + 1] in int32: `cu_seqlens` of FlashAttention."""
    longest: int
    scored_N: Tensor
    """The place in S whose hidden state predicts the scored token: one before it."""
    row_N: Tensor
    """The sequence of each scored token, ascending."""
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
    """Few bins of at most `max_tokens` in either context (first fit, longest first); a longer example is alone."""
    bins: list[list[Example]] = []
    filled: list[int] = []
    for item in sorted(examples, key=lambda item: (-_length(item), item.interaction_id)):
        length = _length(item)
        index = next((index for index, used in enumerate(filled) if used + length <= max_tokens), None)
        if index is None:
            bins.append([item])
            filled.append(length)
        else:
            bins[index].append(item)
            filled[index] += length
    return [tuple(each) for each in bins]


def shard(batch: Sequence[Example], *, rank: int, num_workers: int, max_tokens: int) -> list[MicroBatch]:
    """The micro-batches of one worker, as many as the busiest worker has: the rest are empty.

    Longest first, each example goes to the worker with the fewest tokens. ZeRO gathers and reduces in every pass, so
    the workers must make the same number of them.
    """
    shares: list[list[Example]] = [[] for _ in range(num_workers)]
    tokens = [0] * num_workers
    for item in sorted(batch, key=lambda item: (-_length(item), item.interaction_id)):
        least = tokens.index(min(tokens))
        shares[least].append(item)
        tokens[least] += _length(item)
    packed = [micro_batches(share, max_tokens) for share in shares]
    most = max(len(mine) for mine in packed)
    return packed[rank] + [()] * (most - len(packed[rank]))


def rows(micro_batch: MicroBatch, *, hindsight: bool, device: torch.device | None = None) -> PackedRows:
    """The tensors of context (x, o) or x. An empty micro-batch is one token that is not scored."""
    contexts = [item.hindsight_ids if hindsight else item.prompt_ids for item in micro_batch]
    texts = [context + item.response_ids for context, item in zip(contexts, micro_batch, strict=True)] or [(0,)]
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text))
    counts = [item.num_scored for item in micro_batch]
    scored = [
        start + len(context) + t - 1
        for start, context, item in zip(starts, contexts, micro_batch, strict=False)
        for t in range(item.first_scored, len(item.response_ids))
    ]
    targets = [y for item in micro_batch for y in item.response_ids[item.first_scored :]]

    def long(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return PackedRows(
        ids_1S=long([token for text in texts for token in text])[None],
        positions_1S=long([place for text in texts for place in range(len(text))])[None],
        bounds=torch.tensor(starts, dtype=torch.int32, device=device),
        longest=max(map(len, texts)),
        scored_N=long(scored),
        row_N=long([row for row, count in enumerate(counts) for _ in range(count)]),
        target_N=long(targets),
        temperature_N=torch.tensor(
            [item.temperature for item, count in zip(micro_batch, counts, strict=True) for _ in range(count)],
            dtype=torch.float32,
            device=device,
        ),
    )


def _length(item: Example) -> int:
    return max(len(item.prompt_ids), len(item.hindsight_ids)) + len(item.response_ids)
