"""Each preset by its values, written down here from the paper's Table 5 and from what its authors published."""

from typing import Any

import pytest
from pydantic import ValidationError

from sdpo_ray.config import PRESETS, DistillConfig

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
    "context.empty_system": False,
    "context.end_token": "as_sampled",
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
"""What the product adds to the paper, and what both leave alone: the preset `continual`."""
ON_POLICY: dict[str, Any] = {
    "lora.rank": 0,
    "teacher.kind": "live",
    "signal.log_mix": None,
    "signal.tis_cap": None,
    "signal.max_staleness": None,
    "drift.max_kl_to_base": None,
}
LOGS: dict[str, Any] = {
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
    "paper_offline": {**ON_POLICY, **LOGS, "context.template": "paper"},
    "official_offline_code": {
        **ON_POLICY,
        **LOGS,
        "context.template": "offline_code",
        "context.end_token": "always",
        "context.ignore_first_k": 2,
        "batch_size": 8 * 4 * 4,
        "max_grad_norm": 10.0,
        "optimizer": "adamw_8bit",
        "workers.precision": "pure_bfloat16",
    },
    "official_online_code": {
        **ON_POLICY,
        "context.max_response_tokens": 2048,
        "context.truncated": "train",
        "context.empty_system": True,
        "signal.baseline": "seq_mean",
        "learning_rate": 5e-6,
        "optimizer": "adamw_8bit",
        "workers.precision": "pure_bfloat16",
    },
    "live_branch": {
        **ON_POLICY,
        "lora.rank": 256,
        "lora.alpha": 512,
        "signal.estimator": "topk_reverse_kl",
        "learning_rate": 5e-6,
        "batch_size": 1,
        "adam_eps": 1e-6,
    },
}


def value(config: DistillConfig, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def resolved(preset: str, **values: Any) -> DistillConfig:
    """The preset where it may be: two of them ask for a GPU's optimizer."""
    return DistillConfig(preset=preset, **values, workers={"use_gpu": True})  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", sorted(VALUES))
def test_a_preset_is_these_values_and_the_product_s_default_elsewhere(preset: str):
    config = resolved(preset)
    assert {key: value(config, key) for key in PRODUCT} == PRODUCT | VALUES[preset]


def test_every_preset_is_written_down_here():
    assert PRESETS.keys() == VALUES.keys()


def test_continual_is_what_holds_where_nothing_is_said():
    assert DistillConfig() == DistillConfig(preset="continual")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_what_a_run_file_says_wins_over_its_preset(preset: str):
    said = {
        "learning_rate": 3e-7,
        "context": {"template": "offline_code", "max_messages": 9},
        "signal": {"max_staleness": 3},
    }
    config = resolved(preset, **said)
    assert config.learning_rate == 3e-7
    assert (config.context.template, config.context.max_messages, config.signal.max_staleness) == ("offline_code", 9, 3)
    untouched = resolved(preset)
    assert config.context.truncated == untouched.context.truncated
    assert config.signal.estimator == untouched.signal.estimator


def test_a_preset_that_is_none_is_answered_with_those_that_are():
    with pytest.raises(ValidationError, match="'continual', 'paper_online', 'paper_offline'"):
        DistillConfig(preset="paper")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"preset": "official_offline_code"}, "on a CPU set optimizer = 'adamw'"),
        ({"preset": "paper_online", "teacher": {"kind": "adapter_off"}}, "set lora.rank"),
        ({"preset": "live_branch", "signal": {"baseline": "seq_mean"}}, "belongs to the sampled_token estimator"),
        ({"preset": "live_branch", "signal": {"clip": 2.0}}, "where distributions are compared, set signal.log_mix"),
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
