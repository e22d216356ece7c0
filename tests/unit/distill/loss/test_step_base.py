"""KL to the base policy in a step: measured, and as a penalty."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.distill.data.packing import micro_batches
from sdpo_ray.distill.loss.drift import load_base, view_of
from sdpo_ray.distill.model.load import load_policy
from tests.support.builders import tiny_policy
from tests.support.packed_scores import OBJECTIVES
from tests.support.training_batches import CPU, SIGNALS, alone, batch, chosen, gradient, learns, made, policy, step


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("same_head", [False, True])
def test_kl_to_the_base_is_that_of_whole_distributions_at_the_watched_responses(
    objective: str, same_head: bool, path: Path, model: Any, tmp_path: Path
) -> None:
    plain, items = load_policy(path), batch()
    base = load_policy(path if same_head else tiny_policy(tmp_path, seed=3))
    watched = [items[1], items[3], made("elsewhere", 3, 3, 4)]
    config = OBJECTIVES[objective]
    scorer = load_base(path if same_head else tmp_path, config, CPU)
    if same_head:
        with torch.no_grad():
            for layer in (base.model.layers[0], scorer.body.layers[0]):
                layer.mlp.up_proj.weight.add_(0.5)
    learner = policy(model, base_view=view_of(scorer, watched, config, same_head=same_head))
    sums, watched_gradient = step(model, micro_batches(items, 64), config, learner)
    _, unwatched = step(model, micro_batches(items, 64), config)
    with torch.no_grad():
        log_p, log_base = (
            torch.cat([alone(each, item, hindsight=False) for item in watched[:2]]) for each in (plain, base)
        )
    expected = (log_p.exp() * (log_p - log_base)).sum(-1)
    assert sums.num_base_tokens == len(expected)
    assert sums.kl_to_base == pytest.approx(expected.mean().item(), rel=1e-4)
    assert torch.equal(watched_gradient, unwatched), "the monitor does not change the gradient"


_PENALISED = {name: learns(kl_penalty=0.2, **signal) for name, signal in SIGNALS.items()} | {
    "supervised": learns(objective="sft", kl_penalty=0.2)
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_kl_penalty_changes_the_gradient_of_each_token_with_a_base_score(
    objective: str, path: Path, model: Any
) -> None:
    plain, items = load_policy(path).double(), batch()
    base = {item.interaction_id: torch.linspace(-9, -1, len(item.response_ids) - item.first_scored) for item in items}
    del base["e"]
    pull = torch.zeros((), dtype=torch.float64)
    for item in items:
        if item.interaction_id in base:
            logp_T = chosen(alone(plain, item, hindsight=False), item)
            difference_T = logp_T.detach() - base[item.interaction_id]
            pull = pull + 0.2 * item.weight * (difference_T * logp_T).mean() / 5
    pull.backward()
    parts, learner = micro_batches(items, 64), policy(model.double(), base_logprobs=base)
    _, penalised = step(model, parts, _PENALISED[objective], learner)
    _, free = step(model, parts, OBJECTIVES[objective], learner)
    theirs = gradient(plain)
    assert (penalised - free - theirs).norm() <= 1e-5 * theirs.norm()
