"""The base's scores of the responses, and the drift stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.loss.drift import DriftStop, base_logprobs, load_base, probes
from sdpo_ray.distill.loss.step import StepSums
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.errors import LearnerError
from tests.support.builders import tiny_policy
from tests.support.training_batches import CPU, alone, batch, chosen, made

_SUMS = StepSums(
    loss=0.0,
    mean_advantage=0.0,
    abs_advantage=0.0,
    sampler_gap=0.0,
    entropy=2.0,
    kl_to_base=0.0,
    num_base_tokens=10,
    tis_capped=0.0,
    num_sequences=2,
    num_tokens=10,
    num_dropped=0,
)


def _config(**drift: Any) -> DistillConfig:
    values: Any = {"max_kl_to_base": None} | drift
    return DistillConfig(drift=values, lora={"rank": 0}, workers={"max_tokens_per_micro_batch": 64})  # type: ignore[arg-type]


def test_the_base_scores_the_scored_tokens_without_hindsight_at_each_answer_s_temperature(tmp_path: Path) -> None:
    path = tiny_policy(tmp_path)
    items = [*batch(), made("masked", 3, 3, 4, first_scored=4)]
    found = base_logprobs(load_base(path, _config(), CPU), items, _config())
    plain = load_policy(path)
    assert found.keys() == {item.interaction_id for item in items}
    for item in items:
        with torch.no_grad():
            expected = chosen(alone(plain, item, hindsight=False), item)
        torch.testing.assert_close(found[item.interaction_id], expected, rtol=0, atol=1e-5)
        assert found[item.interaction_id].device == CPU


def test_watched_examples_are_spread_evenly() -> None:
    items = [made(f"e{index}", 1, 1, 1) for index in range(10)]
    assert probes(items, _config(num_probes=10)) == items
    assert probes(items, _config(num_probes=4)) == [items[0], items[2], items[5], items[7]]
    assert probes([], _config(num_probes=4)) == []


def test_an_update_stops_with_a_reason_when_the_last_four_steps_are_too_far_from_the_base() -> None:
    stop = DriftStop(_config(max_kl_to_base=0.5))
    # Means over four steps' tokens: .2, .3, .35, .425, then .575 as the first one leaves the window.
    for step, kl in enumerate((0.2, 0.4, 0.45, 0.65), start=1):
        stop.check(step, replace(_SUMS, kl_to_base=kl))
    with pytest.raises(LearnerError, match=r"drift stop at step 5: KL to the base is 0\.575 .* last 4 steps.* = 0\.5"):
        stop.check(5, replace(_SUMS, kl_to_base=0.8))


def test_the_window_s_mean_is_over_tokens_and_ignores_steps_without_watched_tokens() -> None:
    stop = DriftStop(_config(max_kl_to_base=0.5))
    stop.check(1, replace(_SUMS, kl_to_base=9.0, num_base_tokens=0))
    stop.check(2, replace(_SUMS, kl_to_base=0.1, num_base_tokens=90))
    stop.check(3, replace(_SUMS, kl_to_base=4.0, num_base_tokens=10))
    with pytest.raises(LearnerError, match=r"0\.535 nats"):
        # (9 + 40 + 9.9) / 110
        stop.check(4, replace(_SUMS, kl_to_base=0.99, num_base_tokens=10))


def test_an_update_stops_with_a_reason_when_entropy_is_too_low() -> None:
    stop = DriftStop(_config(min_entropy=1.0))
    stop.check(1, replace(_SUMS, entropy=1.5, num_tokens=30))
    with pytest.raises(LearnerError, match=r"drift stop at step 2: -log p .* 0\.900 .* last 2 steps.* = 1"):
        # (45 + 27) / 80
        stop.check(2, replace(_SUMS, entropy=0.54, num_tokens=50))


def test_without_limits_an_update_never_stops() -> None:
    stop = DriftStop(_config())
    for step in range(6):
        stop.check(step, replace(_SUMS, kl_to_base=1e9, entropy=1e-9))
