"""Results do not depend on sharding: every ZeRO stage, one worker or two, resumed or not. Golden tests 23 and 24."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from tests.support.gloo_workers import Case, Learned, learn

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_KINDS: dict[str, dict[str, Any]] = {
    "all parameters": {"lora": {"rank": 0}, "teacher": {"kind": "live"}},
    "moving average": {"lora": {"rank": 0}, "teacher": {"kind": "ema", "ema_rate": 0.3}},
    "adapter": {"lora": {"rank": 4, "alpha": 8}, "teacher": {"kind": "ema", "ema_rate": 0.3}},
    "top-k against the base": {
        "lora": {"rank": 4, "alpha": 8},
        "teacher": {"kind": "adapter_off"},
        "signal": {"estimator": "topk_reverse_kl"},
    },
    "supervised": {"objective": "sft", "lora": {"rank": 0}, "teacher": {"kind": "live"}},
    "checkpointed activations": {
        "lora": {"rank": 4, "alpha": 8},
        "teacher": {"kind": "frozen"},
        "drift": {"kl_penalty": 0.1},
        "workers": {"activation_checkpointing": True},
    },
}
_STAGES = (0, 1, 2, 3)


def _config(kind: str, zero_stage: int) -> DistillConfig:
    values = _KINDS[kind]
    workers = values.get("workers", {}) | {"zero_stage": zero_stage, "max_tokens_per_micro_batch": 64}
    return DistillConfig(**(values | {"batch_size": 5, "learning_rate": 1e-3, "workers": workers}))


def _mixed(zero_stage: int) -> DistillConfig:
    workers: Any = {"zero_stage": zero_stage, "precision": "mixed_bfloat16"}
    return DistillConfig(batch_size=5, learning_rate=1e-3, lora={"rank": 0}, workers=workers)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def learned(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Learned]]:
    """Every case, by the number of workers."""
    cases = {
        f"{kind}/{stage}".replace("/", "-"): Case(config=_config(kind, stage)) for kind in _KINDS for stage in _STAGES
    }
    cases |= {f"mixed-{stage}": Case(config=_mixed(stage)) for stage in (1, 2, 3)}
    for stage in _STAGES:
        config = _config("moving average", stage)
        cases[f"straight-{stage}"] = Case(config=config, epochs=2)
        cases[f"resumed-{stage}"] = Case(config=config, epochs=2, resume_after=4)
    for stage in (0, 3):
        config = _config("adapter", stage)
        cases[f"straight-adapter-{stage}"] = Case(config=config, epochs=2)
        cases[f"resumed-adapter-{stage}"] = Case(config=config, epochs=2, resume_after=4)
    by_two = {
        f"handed-over-{stage}": Case(
            config=_config("moving average", stage),
            epochs=2,
            resume_after=4,
            checkpoints=tmp_path_factory.mktemp(f"handed-over-{stage}"),
        )
        for stage in (0, 2)
    }
    by_one = {name: replace(case, resume_after=None) for name, case in by_two.items()}
    return {
        2: learn(policy, cases | by_two, num_workers=2, out=tmp_path_factory.mktemp("by2")),
        1: learn(policy, cases | by_one, num_workers=1, out=tmp_path_factory.mktemp("by1")),
    }


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("stage", _STAGES)
@pytest.mark.parametrize("kind", _KINDS)
def test_golden_23_every_stage_with_uneven_and_empty_shards_equals_a_single_process(
    kind: str, stage: int, num_workers: int, learned: dict[int, dict[str, Learned]]
) -> None:
    alone, sharded = learned[1][f"{kind}-0"], learned[num_workers][f"{kind}-{stage}"]
    for mine, other in zip(sharded.steps, alone.steps, strict=True):
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
        assert (mine.loss, mine.abs_advantage, mine.sampler_gap, mine.entropy, mine.kl_to_base) == pytest.approx(
            (other.loss, other.abs_advantage, other.sampler_gap, other.entropy, other.kl_to_base), rel=1e-4, abs=1e-5
        )
        assert (mine.num_sequences, mine.num_tokens) == (other.num_sequences, other.num_tokens)
    _assert_close(sharded.weights, alone.weights, 1e-5)
    _assert_close(sharded.teacher, alone.teacher, 1e-5)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_mixed_precision_has_the_same_masters_at_any_stage(
    stage: int, num_workers: int, learned: dict[int, dict[str, Learned]]
) -> None:
    # Stage 3 loads shard by shard, which once rounded the rotary frequencies.
    first, other = learned[num_workers]["mixed-1"], learned[num_workers][f"mixed-{stage}"]
    assert [step.loss for step in other.steps] == pytest.approx([step.loss for step in first.steps], rel=1e-5)
    _assert_close(other.weights, first.weights, 1e-5)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("what", ["0", "1", "2", "3", "adapter-0", "adapter-3"])
def test_golden_24_a_resumed_update_is_bitwise_the_one_that_was_not_interrupted(
    what: str, num_workers: int, learned: dict[int, dict[str, Learned]]
) -> None:
    straight, resumed = (learned[num_workers][f"{how}-{what}"] for how in ("straight", "resumed"))
    assert len(straight.steps) == 6
    assert resumed.steps == straight.steps
    for name in straight.weights:
        assert torch.equal(resumed.weights[name], straight.weights[name]), name
        assert torch.equal(resumed.teacher[name], straight.teacher[name]), name


@pytest.mark.parametrize("stage", [0, 2])
def test_a_group_that_comes_back_smaller_learns_the_same(stage: int, learned: dict[int, dict[str, Learned]]) -> None:
    # Stage 0 resumes after step 4; the shards of stage 2 do not fit one worker, which starts over.
    straight, smaller = learned[1][f"straight-{stage}"], learned[1][f"handed-over-{stage}"]
    assert [step.step for step in smaller.steps] == [1, 2, 3, 4, 5, 6]
    assert (smaller.steps[:4] == learned[2][f"handed-over-{stage}"].steps[:4]) is (stage == 0)
    _assert_close(smaller.weights, straight.weights, 1e-5)
    _assert_close(smaller.teacher, straight.teacher, 1e-5)


def _assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Equal except rare weights whose gradient is rounding noise, which Adam scales to a whole step."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        far = (ours[name] - theirs[name]).abs() > tolerance
        assert far.sum() <= max(2, far.numel() // 1000), name
