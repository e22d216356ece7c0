"""Draw the interactions of one update from light rows; pure and seeded.

Recent interactions weigh more: w_i = 2^(-newer_i / half_life). Without replacement, after Efraimidis and Spirakis
(Information Processing Letters 97, 2006): keep the largest u_i^(1/w_i), u_i uniform. The same order is that of the
smallest log(e_i) - log(w_i) with e_i = -log(u_i) exponential, which old rows do not underflow.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sdpo_ray.config import Curate


@dataclass(frozen=True, slots=True, kw_only=True)
class LightRow:
    """What the draw looks at in an interaction. Made by `curate.stream`."""

    interaction_id: str
    follow_up_at_s: float
    policy_version: int
    conversation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was drawn. Made by `draw`; read by `curate.stream`."""

    interaction_ids: tuple[str, ...]
    """In the order of training."""
    held_out_ids: tuple[str, ...]
    """The newest held-out interactions that are not stale, at most as many as a snapshot has, newest first."""
    rule: str
    """The sampling rule in words and numbers."""


def draw(rows: Iterable[LightRow], *, champion_version: int, seed: int, config: Curate) -> Plan:
    """Draw at most `config.snapshot_size` interactions, each at most once; the order of `rows` plays no part."""
    fresh = _fresh(rows, champion_version, config)
    trainable = [row for row in fresh if not is_held_out(row.conversation, config.held_out)]
    held_out = [row for row in fresh if is_held_out(row.conversation, config.held_out)]
    generator = np.random.default_rng(seed)
    # The smallest positive number instead of 0, whose logarithm is not finite.
    exponential = np.maximum(generator.standard_exponential(len(trainable)), np.finfo(np.float64).tiny)
    keys = np.log(exponential) + np.arange(len(trainable)) * (math.log(2) / config.recency_half_life)
    chosen = np.argsort(keys, kind="stable")[: config.snapshot_size]
    return Plan(
        interaction_ids=tuple(trainable[index].interaction_id for index in generator.permutation(chosen)),
        held_out_ids=tuple(row.interaction_id for row in held_out[: config.snapshot_size]),
        rule=(
            f"{len(chosen)} of {len(trainable)} trainable interactions without replacement, weight halved by every "
            f"{config.recency_half_life} newer ones; answers at most {config.max_age_versions} versions older than "
            f"v{champion_version}; {config.held_out:g} of conversations held out ({len(held_out)} interactions)"
        ),
    )


def count_trainable(rows: Iterable[LightRow], *, champion_version: int, config: Curate) -> int:
    """How many of `rows` a draw could take."""
    fresh = _fresh(rows, champion_version, config)
    return sum(not is_held_out(row.conversation, config.held_out) for row in fresh)


def is_held_out(conversation: str, share: float) -> bool:
    """Whether a conversation is never trained on: a property of the conversation alone, so no draw can leak it."""
    digest = hashlib.sha256(f"held-out {conversation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _fresh(rows: Iterable[LightRow], champion_version: int, config: Curate) -> Sequence[LightRow]:
    """The rows that are not stale, newest first; equal times in the order of their ids."""
    fresh = [row for row in rows if champion_version - row.policy_version <= config.max_age_versions]
    return sorted(fresh, key=lambda row: (-row.follow_up_at_s, row.interaction_id))
