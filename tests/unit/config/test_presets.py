"""Each preset by its values, written down here from the paper's text and its Table 5."""

from typing import Any

import pytest
from pydantic import ValidationError

from sdpo_ray.config import PRESETS, DistillConfig
from sdpo_ray.config.presets import REMOVED_PRESETS

PRODUCT: dict[str, Any] = {
    "objective": "sdpo",
    "learning_rate": 1e-5,
    "schedule": "constant",
    "warmup": 0.0,
    "batch_size": 32,
    "epochs": 1,
    "max_grad_norm": 1.0,
    "optimizer": "adamw",
    "adam_eps": 1e-8,
    "context.template": "online",
    "context.max_messages": None,
    "context.max_prompt_tokens": None,
    "context.max_response_tokens": None,
    "context.max_follow_up_tokens": 512,
    "context.truncated": "mask",
    "context.ignore_first_k": 0,
    "context.text_only": "refuse",
    "context.redacted": "refuse",
    "context.max_copies": 4,
    "signal.estimator": "sampled_token",
    "signal.top_k": 20,
    "signal.baseline": "none",
    "signal.clip": None,
    "signal.log_mix": 0.9,
    "signal.normalize": "seq_mean_token_mean",
    "signal.tis_cap": 2.0,
    "signal.max_staleness": 8,
    "signal.staleness_half_life": None,
    "teacher.kind": "ema",
    "teacher.ema_rate": 0.02,
    "teacher.baselined": True,
    "drift.kl_penalty": 0.0,
    "drift.max_kl_to_base": 1.0,
    "lora.rank": 64,
    "lora.alpha": 128,
    "workers.precision": "float32",
}
"""The preset `continual`: every default of `[distill]` that a preset may change."""
ON_POLICY: dict[str, Any] = {
    "lora.rank": 0,
    "teacher.kind": "live",
    "signal.log_mix": None,
    "signal.tis_cap": None,
    "signal.max_staleness": None,
    "drift.max_kl_to_base": None,
}
LOGGED: dict[str, Any] = {
    "context.max_messages": 5,
    "context.max_prompt_tokens": 2048,
    "context.max_response_tokens": 2048,
    "context.text_only": "train",
    "context.truncated": "train",
    "learning_rate": 2e-6,
    "schedule": "cosine",
    "warmup": 0.05,
    "epochs": 2,
}
VALUES: dict[str, dict[str, Any]] = {
    "continual": {},
    "paper_online": {
        **ON_POLICY,
        "context.template": "paper",
        "context.max_response_tokens": 2048,
        "context.truncated": "train",
        "learning_rate": 5e-6,
    },
    "paper_offline": {**ON_POLICY, **LOGGED, "context.template": "paper"},
}


def value(config: DistillConfig, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def resolved(preset: str, **values: Any) -> DistillConfig:
    return DistillConfig(preset=preset, **values)


@pytest.mark.parametrize("preset", sorted(VALUES))
def test_a_preset_sets_these_values_and_keeps_the_defaults_elsewhere(preset: str):
    config = resolved(preset)
    assert {key: value(config, key) for key in PRODUCT} == PRODUCT | VALUES[preset]


def test_every_preset_is_tested_here():
    assert PRESETS.keys() == VALUES.keys()


def test_continual_is_the_default_preset():
    assert DistillConfig() == DistillConfig(preset="continual")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_values_of_the_run_file_override_the_preset(preset: str):
    values: dict[str, Any] = {
        "learning_rate": 3e-7,
        "context": {"template": "offline_code", "max_messages": 9},
        "signal": {"max_staleness": 3},
    }
    config = resolved(preset, **values)
    assert config.learning_rate == 3e-7
    assert (config.context.template, config.context.max_messages, config.signal.max_staleness) == ("offline_code", 9, 3)
    untouched = resolved(preset)
    assert config.context.truncated == untouched.context.truncated
    assert config.signal.estimator == untouched.signal.estimator


def test_an_unknown_preset_is_answered_with_those_that_exist():
    with pytest.raises(ValidationError, match="'continual', 'paper_online', 'paper_offline'"):
        DistillConfig(preset="paper")


@pytest.mark.parametrize("preset", sorted(REMOVED_PRESETS))
def test_a_removed_preset_is_answered_with_what_to_use_instead(preset: str):
    with pytest.raises(ValidationError, match=f"'{preset}' was removed: .* start from 'paper_offline'"):
        DistillConfig(preset=preset)


def test_an_unknown_estimator_is_answered_with_those_that_exist():
    with pytest.raises(
        ValidationError, match=r"one of sampled_token, topk_reverse_kl, full_kl, or package\.module:Class"
    ):
        DistillConfig(signal={"estimator": "kl"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"optimizer": "adamw_8bit"}, "on a CPU set optimizer = 'adamw'"),
        ({"preset": "paper_online", "teacher": {"kind": "adapter_off"}}, "set lora.rank"),
        (
            {"signal": {"estimator": "topk_reverse_kl", "baseline": "seq_mean"}},
            "belongs to the sampled_token estimator",
        ),
        (
            {"signal": {"estimator": "topk_reverse_kl", "clip": 2.0}},
            "where distributions are compared, set signal.log_mix",
        ),
        ({"workers": {"offload": "optimizer"}}, "needs workers.zero_stage 1, 2 or 3"),
        ({"workers": {"offload": "all", "zero_stage": 2}}, "needs workers.zero_stage 3"),
        ({"workers": {"precision": "mixed_bfloat16"}}, "there are the fp32 masters"),
        ({"workers": {"precision": "pure_bfloat16", "zero_stage": 2}}, "needs workers.zero_stage 0"),
        (
            {
                "lora": {"rank": 0},
                "signal": {"estimator": "full_kl"},
                "workers": {"zero_stage": 3},
            },
            "lower workers.zero_stage, or set lora.rank",
        ),
    ],
)
def test_values_that_exclude_each_other_are_refused_with_what_to_do(values: dict[str, Any], remedy: str):
    with pytest.raises(ValidationError, match=remedy.replace(".", r"\.")):
        DistillConfig(**values)
