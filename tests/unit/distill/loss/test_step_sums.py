"""What a step measures, and truncated importance sampling.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.distill.data.packing import micro_batches
from sdpo_ray.distill.model.load import load_policy
from tests.support.packed_scores import as_sampled, scores_of
from tests.support.training_batches import alone, batch, chosen, learns, made, policy, step


def test_golden_12_tis_through_a_step(model: Any) -> None:
    items = [made("x", 5, 4, 7), made("y", 3, 3, 5, first_scored=2)]
    _, off = step(model, [tuple(items)], learns())
    exact = [replace(item, sampler_logprobs=as_sampled(item, scores_of(model, item))) for item in items]
    on_sums, on = step(model, [tuple(exact)], learns(tis_cap=2.0))
    assert (on - off).norm() <= 1e-5 * off.norm()
    assert on_sums.tis_capped == 0
    rarer = [replace(item, sampler_logprobs=tuple(logp - 3 for logp in item.sampler_logprobs)) for item in exact]
    capped_sums, capped = step(model, [tuple(rarer)], learns(tis_cap=2.0))
    assert (capped - 2 * off).norm() <= 1e-5 * off.norm()
    assert capped_sums.tis_capped == 1
    assert torch.equal(step(model, [tuple(items)], learns(tis_cap=2.0))[1], off)
    assert torch.equal(step(model, [tuple(rarer)], learns())[1], off)


def test_golden_27_the_sampler_gap_is_the_mean_absolute_difference_over_known_tokens(model: Any) -> None:
    known = [
        replace(item, sampler_logprobs=() if index == 3 else as_sampled(item, scores_of(model, item) - 0.25))
        for index, item in enumerate(batch())
    ]
    assert step(model, micro_batches(known, 64), learns())[0].sampler_gap == pytest.approx(0.25, abs=1e-5)
    unknown = [replace(item, sampler_logprobs=()) for item in known]
    assert step(model, micro_batches(unknown, 64), learns())[0].sampler_gap == 0


def test_a_step_reports_entropy_advantage_and_kl_to_the_base_as_means_over_tokens(path: Path, model: Any) -> None:
    plain, items = load_policy(path), batch()
    with torch.no_grad():
        logp = [chosen(alone(plain, item, hindsight=False), item) for item in items]
        advantage = torch.cat([chosen(alone(plain, item, hindsight=True), item) for item in items]) - torch.cat(logp)
    sums, _ = step(model, micro_batches(items, 64), learns(), policy(model))
    assert sums.entropy == pytest.approx(-torch.cat(logp).mean().item(), rel=1e-5)
    assert sums.mean_advantage == pytest.approx(advantage.mean().item(), rel=1e-4)
    assert sums.abs_advantage == pytest.approx(advantage.abs().mean().item(), rel=1e-4)
    assert sums.num_base_tokens == 0
