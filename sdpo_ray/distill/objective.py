"""SDPO, sampled-token estimator with the live policy as its own teacher.

    A_t  = log p(y_t | x, o, y_<t) - log p(y_t | x, y_<t)          held constant
    L    = -1/S sum_s 1/T_s sum_t A_t log p(y_t | x, y_<t)
    dL   = -1/S sum_s 1/T_s sum_t A_t d log p(y_t | x, y_<t)       arXiv 2603.12273, Lemma B.1

S sequences of the whole batch over all workers and micro-batches, T_s response tokens of sequence s, N scored
tokens of one micro-batch, B its rows. Left out on purpose: baseline, clipping, importance ratios, KL to a reference.
For a fixed o the expectation of dL over y is the gradient of the per-token KL(p(.|x) || p(.|x,o)); where o
answers y, as with real users, the two differ and may have opposite signs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def advantages(hindsight_logp_N: Tensor, logp_N: Tensor) -> Tensor:
    """A_t in nats, without gradient."""
    return (hindsight_logp_N - logp_N).detach()


def sampled_loss(logp_N: Tensor, advantage_N: Tensor, weight_N: Tensor) -> Tensor:
    """This micro-batch's part of L, a scalar: the parts of all micro-batches and workers add up to L."""
    return -(weight_N * advantage_N * logp_N).sum()


def token_weights(num_tokens: Sequence[int], num_sequences: int) -> Tensor:
    """1 / (S T_s) for every token of the rows, [N] in fp32. `num_sequences` is S, of the whole batch."""
    counts_B = torch.tensor(num_tokens, dtype=torch.long)
    return (1.0 / (num_sequences * counts_B.float())).repeat_interleave(counts_B)


def finite_rows(value_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Which rows have finite values only, [B] of bool: the others must not enter a step."""
    bad_B = torch.zeros(num_rows, dtype=torch.long, device=value_N.device)
    return bad_B.index_add_(0, row_N, (~value_N.isfinite()).long()) == 0
