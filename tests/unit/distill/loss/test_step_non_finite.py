"""Steps in which the teacher or the policy scores a token with a number that is not finite.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.packing import PackedRows, micro_batches
from sdpo_ray.distill.model.load import load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.errors import LearnerError
from tests.support.packed_scores import OBJECTIVES
from tests.support.training_batches import batch, learns, policy, step


@pytest.mark.parametrize("signal", [{}, {"estimator": "topk_reverse_kl"}, {"baseline": "token_kl"}], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("baselined", [False, True])
def test_golden_28_a_sequence_with_teacher_scores_that_are_not_finite_is_dropped_and_counted(
    poison: float, signal: dict[str, Any], baselined: bool, model: Any
) -> None:
    items = batch()
    scorer = PackedLM(model)

    def run(context: PackedRows, work: Any) -> Any:
        found = scorer(context, work)
        if torch.is_grad_enabled():
            return found
        # Two responses have ten scored tokens.
        lengths_B = context.row_N.bincount()
        poisoned_N = (lengths_B[context.row_N] == 10) & (torch.arange(len(context.row_N)) % 3 == 0)
        # Poison the hindsight context, or with `baselined` only the prompt's.
        if baselined == (len(context.ids_1S[0]) == sum(len(i.prompt_ids) + len(i.response_ids) for i in items)):
            found[0][poisoned_N] = poison
        return found

    learner = policy(model, baselined=baselined)
    sums, found = step(model, [tuple(items)], learns(**signal), replace(learner, run=run))
    kept = [item for item in items if len(item.response_ids) - item.first_scored != 10]
    expected_sums, expected = step(model, [tuple(kept)], learns(**signal), learner)
    assert (sums.num_dropped, sums.num_sequences, expected_sums.num_sequences) == (2, 3, 3)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert sums.loss == pytest.approx(expected_sums.loss, rel=1e-5)
    assert math.isfinite(sums.mean_advantage)


def test_golden_28_a_batch_without_any_finite_teacher_scores_is_an_error(model: Any, other_path: Path) -> None:
    teacher = load_packed(other_path)
    with torch.no_grad():
        teacher.model.norm.weight[3] = math.nan
    with pytest.raises(LearnerError, match="5 dropped"):
        step(model, micro_batches(batch(), 64), learns(), policy(model, teacher=teacher))


@pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)
def test_golden_28_a_policy_with_weights_that_are_not_finite_is_an_error(
    config: DistillConfig, model: Any, other_path: Path
) -> None:
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with pytest.raises(LearnerError, match="the loss is nan"):
        step(model, micro_batches(batch(), 64), config, policy(model, teacher=load_packed(other_path)))
