"""The learning rate of each step, DeepSpeed's configuration, and its effect on precision. Golden test 25."""

import math
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.train.deepspeed_engine import deepspeed_config, deepspeed_engine, learning_rate
from sdpo_ray.errors import ConfigError


def _config(workers: dict[str, Any] | None = None, **values: Any) -> DistillConfig:
    return DistillConfig(**({"lora": {"rank": 0}, "workers": workers or {}} | values))


def _rates(num_steps: int, **values: Any) -> list[float]:
    config = _config(learning_rate=1.0, **values)
    return [learning_rate(step, num_steps, config) for step in range(1, num_steps + 1)]


def test_a_constant_rate_is_constant_from_the_first_step_on() -> None:
    assert _rates(3) == [1.0, 1.0, 1.0]


def test_a_warm_up_rises_linearly_over_its_share_of_the_steps() -> None:
    assert _rates(10, warmup=0.4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    # A fraction of a step is rounded up: 5 % of thirty are two.
    assert _rates(30, warmup=0.05)[:3] == pytest.approx([0.5, 1.0, 1.0])


def test_a_cosine_falls_from_the_whole_rate_over_the_steps_after_the_warm_up() -> None:
    half = math.sqrt(0.5)
    by_hand = [0.5, 1.0, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert _rates(6, warmup=0.3, schedule="cosine") == pytest.approx(by_hand)
    assert _rates(1, schedule="cosine") == [1.0]
    assert _rates(4, schedule="cosine") == pytest.approx([1.0, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_a_cosine_is_that_of_transformers_one_step_ahead_during_warm_up() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=40)
    theirs = []
    for _ in range(40):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = _rates(40, warmup=0.05, schedule="cosine")
    # The first step of transformers' schedule has a rate of zero.
    assert theirs[:3] == [0.0, 0.5, 1.0]
    assert ours[:3] == [0.5, 1.0, 1.0]
    assert ours[2:] == pytest.approx(theirs[2:])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_configuration_has_the_stage_and_the_clipping_and_no_accumulation(stage: int) -> None:
    told = deepspeed_config(_config({"zero_stage": stage}, max_grad_norm=0.7))
    assert told["zero_optimization"]["stage"] == stage
    assert told["gradient_clipping"] == 0.7
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (1, 1)
    assert "bf16" not in told


def test_deepspeed_s_adamw_has_no_decay_and_the_given_epsilon() -> None:
    told = deepspeed_config(_config(learning_rate=3e-6, adam_eps=1e-6))["optimizer"]
    assert told["type"] == "AdamW"
    expected = {"lr": 3e-6, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.0}
    assert expected.items() <= told["params"].items()


def test_the_configuration_has_the_offload_targets_and_keeps_no_gathered_parameters() -> None:
    plain = deepspeed_config(_config({"zero_stage": 3}))["zero_optimization"]
    assert (plain["stage3_param_persistence_threshold"], plain["stage3_max_reuse_distance"]) == (0, 0)
    assert "offload_optimizer" not in plain
    some = deepspeed_config(_config({"zero_stage": 2, "offload": "optimizer"}))["zero_optimization"]
    assert (some["offload_optimizer"]["device"], "offload_param" in some) == ("cpu", False)
    everything = deepspeed_config(_config({"zero_stage": 3, "offload": "all"}))["zero_optimization"]
    assert everything["offload_param"]["device"] == everything["offload_optimizer"]["device"] == "cpu"


def test_mixed_precision_accumulates_gradients_in_fp32() -> None:
    told = deepspeed_config(_config({"zero_stage": 1, "precision": "mixed_bfloat16"}))
    assert told["bf16"] == {"enabled": True}
    assert told["data_types"] == {"grad_accum_dtype": "fp32"}


def test_8_bit_adam_without_its_package_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    config = _config({"use_gpu": True}, optimizer="adamw_8bit")
    assert "optimizer" not in deepspeed_config(config)
    with pytest.raises(ConfigError, match="bitsandbytes, or set optimizer = 'adamw'"):
        deepspeed_engine(torch.nn.Linear(2, 2), config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moved:
    """A model whose weights start at 1."""

    weights: torch.Tensor
    computed_with: torch.Tensor


_PRECISIONS = {"mixed_bfloat16": 1, "pure_bfloat16": 0}


def _learn(rank: int, port: int, out: Path) -> None:
    """A hundred steps in each precision, in a process of its own: DeepSpeed keeps state between engines."""
    from sdpo_ray.distill.train.zero_gather import gather_parameters

    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=1)
    found = {}
    for precision, stage in _PRECISIONS.items():
        module = torch.nn.Linear(8, 1, bias=False).bfloat16()
        with torch.no_grad():
            module.weight.fill_(1.0)
        engine = deepspeed_engine(module, _config({"precision": precision, "zero_stage": stage}, learning_rate=1e-4))
        for _ in range(100):
            # With a constant gradient, each step of Adam equals the learning rate.
            engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).float().sum())
            engine.step()
        found[precision] = _Moved(
            weights=gather_parameters({"weight": module.weight}, keep=True)["weight"],
            computed_with=module.weight.detach().clone(),
        )
    torch.save(found, out)
    torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_golden_25_a_hundred_steps_of_1e_4_add_up_with_fp32_masters_and_are_lost_in_bf16(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_learn, (port, tmp_path / "moved.pt"))
    found = torch.load(tmp_path / "moved.pt", weights_only=False)
    mixed, pure = found["mixed_bfloat16"], found["pure_bfloat16"]
    torch.testing.assert_close(mixed.weights, torch.full((1, 8), 0.99), rtol=0, atol=1e-5)
    assert torch.equal(mixed.computed_with, mixed.weights.bfloat16())
    assert (pure.weights == 1).all()
    assert (pure.computed_with == 1).all()
