"""KL(policy || base) over the whole vocabulary, at the scored positions of a few watched responses.

It is computed from the logits that a step computes anyway. A sampled estimate would hold for responses of the policy's
own; for logged ones it is no estimate, since p did not sample them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.loss.advantages import normalized, reverse_kl
from sdpo_ray.distill.model.lm_head import logits

_TOKENS_PER_PASS = 32
"""Watched tokens whose base distributions exist at a time, beside the chunk's logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseView:
    """The run's base policy at the watched responses. Made by `drift.view_of`; read by `KLMonitor`."""

    hidden: dict[str, Tensor]
    """Hidden states [n, D] at the scored positions of each response, without hindsight, by interaction; on the CPU."""
    head_VD: Tensor | None
    """The base's output weights; None where the policy's own are the same and are not trained."""


class KLMonitor:
    """KL to the base over one micro-batch: `kl` becomes the sum over `num_tokens` watched tokens, in nats."""

    def __init__(self, view: BaseView, micro_batch: Sequence[Example], device: torch.device) -> None:
        self._places: list[int] = []
        self._head_VD = view.head_VD
        self.kl = torch.zeros((), dtype=torch.float64, device=device)
        found, start = [], 0
        for item in micro_batch:
            if item.interaction_id in view.hidden:
                self._places.extend(range(start, start + item.num_scored))
                found.append(view.hidden[item.interaction_id])
            start += item.num_scored
        self._hidden_KD = torch.cat(found).to(device) if found else None

    @property
    def num_tokens(self) -> int:
        return len(self._places)

    def update(self, logits_CV: Tensor, part: slice, temperature_N: Tensor, weight_VD: Tensor) -> None:
        """Add the KL of the watched tokens in a slice of N; does not change the logits."""
        first, last = bisect_left(self._places, part.start), bisect_left(self._places, part.stop)
        if self._hidden_KD is None or first == last:
            return
        head_VD = weight_VD if self._head_VD is None else self._head_VD
        for start in range(first, last, _TOKENS_PER_PASS):
            end = min(start + _TOKENS_PER_PASS, last)
            places_K = torch.tensor(self._places[start:end], device=logits_CV.device)
            base_KV = logits(self._hidden_KD[start:end], head_VD, temperature_N[places_K])
            policy_KV = logits_CV[places_K - part.start]
            self.kl += reverse_kl(policy_KV, normalized(base_KV), None).sum()
