"""Examples to micro-batches of bounded size, the same on every worker, and a micro-batch to one row without padding.

Sequences are concatenated; `bounds` gives attention the start of each. Scored positions follow from lengths alone, so
no token can be mistaken for padding.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_ray.distill.data.example import Example

MicroBatch = tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """One context of a micro-batch as tensors: B sequences of S tokens in total, N of them scored.

    Made by `rows`; read by `distill.model` and `distill.loss`.
    """

    ids_1S: Tensor
    positions_1S: Tensor
    """Each token's position in its own sequence."""
    bounds: Tensor
    """Start of each sequence and end of the last, [B + 1] in int32: FlashAttention's `cu_seqlens`."""
    longest: int
    """Tokens of the longest sequence."""
    scored_N: Tensor
    """Index into S of the hidden state that predicts the scored token: one before it."""
    row_N: Tensor
    """The sequence of each scored token, ascending."""
    target_N: Tensor
    temperature_N: Tensor


def batches(examples: Sequence[Example], batch_size: int, epochs: int, seed: int) -> Iterator[list[Example]]:
    """Batches of each epoch: the first in the given order, later ones shuffled by `seed`; the last may be short."""
    for epoch in range(epochs):
        order = list(examples)
        if epoch:
            random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[MicroBatch]:
    """Bins of at most `max_tokens` in any context (first fit, longest first); a longer example gets its own bin."""
    bins: list[list[Example]] = []
    filled: list[int] = []
    for item in sorted(examples, key=_longest_first):
        length = item.max_tokens
        index = next((index for index, used in enumerate(filled) if used + length <= max_tokens), None)
        if index is None:
            bins.append([item])
            filled.append(length)
        else:
            bins[index].append(item)
            filled[index] += length
    return [tuple(each) for each in bins]


def shard(batch: Sequence[Example], *, rank: int, num_workers: int, max_tokens: int) -> list[MicroBatch]:
    """The micro-batches of one worker, padded with empty ones to as many as the busiest worker has.

    Longest first, each example goes to the worker with the fewest tokens. ZeRO gathers and reduces in every pass, so
    all workers must make the same number of passes.
    """
    shares: list[list[Example]] = [[] for _ in range(num_workers)]
    tokens = [0] * num_workers
    for item in sorted(batch, key=_longest_first):
        least = tokens.index(min(tokens))
        shares[least].append(item)
        tokens[least] += item.max_tokens
    packed = [micro_batches(share, max_tokens) for share in shares]
    num_passes = max(len(share) for share in packed)
    return packed[rank] + [()] * (num_passes - len(packed[rank]))


def rows(micro_batch: MicroBatch, context: str, *, device: torch.device | None = None) -> PackedRows:
    """The tensors of one context, by its name. An empty micro-batch is one token that is not scored."""
    contexts = [item.context_ids(context) for item in micro_batch]
    sequences = [ids + item.response_ids for ids, item in zip(contexts, micro_batch, strict=True)] or [(0,)]
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    counts = [item.num_scored for item in micro_batch]
    scored = [
        start + len(ids) + t - 1
        for start, ids, item in zip(starts, contexts, micro_batch, strict=False)
        for t in range(item.first_scored, len(item.response_ids))
    ]
    targets = [y for item in micro_batch for y in item.response_ids[item.first_scored :]]

    def long(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return PackedRows(
        ids_1S=long([token for sequence in sequences for token in sequence])[None],
        positions_1S=long([position for sequence in sequences for position in range(len(sequence))])[None],
        bounds=torch.tensor(starts, dtype=torch.int32, device=device),
        longest=max(map(len, sequences)),
        scored_N=long(scored),
        row_N=long([row for row, count in enumerate(counts) for _ in range(count)]),
        target_N=long(targets),
        temperature_N=torch.tensor(
            [item.temperature for item, count in zip(micro_batch, counts, strict=True) for _ in range(count)],
            dtype=torch.float32,
            device=device,
        ),
    )


def _longest_first(item: Example) -> tuple[int, str]:
    return -item.max_tokens, item.interaction_id
