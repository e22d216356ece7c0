"""Log-probs of packed rows.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.distill.data.packing import micro_batches
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.errors import ConfigError
from tests.support.builders import tiny_policy
from tests.support.packed_scores import packed_scores
from tests.support.training_batches import made


def test_golden_26_scores_of_the_same_contexts_in_different_packs_differ_by_rounding_only(model: Any) -> None:
    items = [made(f"n{index}", 3 + 7 * index, 0, 5 + 3 * index) for index in range(8)]
    found = {}
    for parts in (micro_batches(items, 1), micro_batches(items, 90), [tuple(items)], [tuple(reversed(items))]):
        for part in parts:
            for item, scores in zip(part, packed_scores(model, part), strict=True):
                found.setdefault(item.interaction_id, []).append(scores)
    noise = max((scores - each[0]).abs().max().item() for each in found.values() for scores in each)
    assert {len(each) for each in found.values()} == {4}
    assert noise < 1e-5


def test_positions_start_at_zero_in_each_sequence(model: Any) -> None:
    # Rotations tell distances alone, but schemes that depend on length tell where a sequence begins.
    seen: list[Tensor] = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    first, second = made("a", 2, 3, 4), made("b", 3, 0, 1)
    packed_scores(model, (first, second))
    assert [each.tolist() for each in seen] == [[[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]]


def test_models_whose_logits_are_not_hidden_states_times_weights_are_refused(tmp_path: Path) -> None:
    model = load_policy(tiny_policy(tmp_path, tied=False))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(264))
    with pytest.raises(ConfigError, match="output bias"):
        PackedLM(model)
    model.lm_head.bias = None
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="capped logits"):
        PackedLM(model)
