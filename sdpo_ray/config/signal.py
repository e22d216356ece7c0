"""The section `[distill.signal]`. A new signal adds its settings here, and its name to `ESTIMATORS`."""

import re
from typing import Literal

from pydantic import Field, field_validator

from sdpo_ray.config.section import Section

ESTIMATORS = ("sampled_token", "topk_reverse_kl", "full_kl")
"""Estimators by name; `distill.signals.registry` has their implementations."""


class SignalConfig(Section):
    """What each token of y is moved by."""

    estimator: str = "sampled_token"
    """The learning signal: `sampled_token` (SDPO), `topk_reverse_kl`, `full_kl`, or `package.module:Class` of a class
    that implements `distill.signals.protocol.Signal`."""
    top_k: int = Field(default=20, ge=1)
    """Tokens of the student's distribution that `topk_reverse_kl` compares one by one; the rest are one bucket."""
    baseline: Literal["none", "seq_mean", "ema_scalar", "token_kl"] = "none"
    """What is subtracted from the advantage of `sampled_token`: nothing, its mean over the sequence, a moving average
    of the batches' means, or minus the position's KL(student || teacher)."""
    clip: float | None = Field(default=None, gt=0)
    """Advantages are clamped to [-clip, clip] nats. None does not clamp."""
    log_mix: float | None = Field(default=0.9, gt=0, lt=1)
    """a: the teacher becomes a*teacher + (1-a)*student, so no advantage is below log(1-a) nats. None does not mix."""
    normalize: Literal["seq_mean_token_mean", "token_mean", "token_sum"] = "seq_mean_token_mean"
    """Mean over tokens then sequences; mean over all tokens; or sum over tokens and mean over sequences."""
    tis_cap: float | None = Field(default=2.0, ge=1)
    """Cap of each token's truncated importance weight p(learner)/p(sampler). None sets all weights to 1."""
    max_staleness: int | None = Field(default=8, ge=0)
    """Most policy versions between a response and the update's parent; None sets no limit."""
    staleness_half_life: float | None = Field(default=None, gt=0)
    """Versions of age after which a response's weight is halved. None weighs all ages alike."""
    relevance_probes: int = Field(default=64, ge=0)
    """Interactions of the snapshot whose follow-up is compared with an unrelated one, for the record; 0 for none."""

    @field_validator("estimator")
    @classmethod
    def _known(cls, estimator: str) -> str:
        if estimator not in ESTIMATORS and not re.fullmatch(r"[\w.]+:\w+", estimator):
            raise ValueError(f"one of {', '.join(ESTIMATORS)}, or package.module:Class")
        return estimator

    @property
    def compares_distributions(self) -> bool:
        """Whether a built-in estimator needs the teacher's whole distribution, not only log q(y_t)."""
        return self.estimator in ("topk_reverse_kl", "full_kl") or self.baseline == "token_kl"
