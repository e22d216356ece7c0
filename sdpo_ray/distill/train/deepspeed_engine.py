"""The DeepSpeed engine of one worker, its configuration, and the learning rate of each step."""

import logging
import math
from typing import Any

from sdpo_ray.config import DistillConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.upstream.deepspeed import disable_cpu_collectives


def deepspeed_engine(module: Any, config: DistillConfig) -> Any:
    """A DeepSpeed engine over the trainable parameters of `module`.

    Raises ConfigError where the optimizer's package is not installed.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not config.workers.use_gpu:
        disable_cpu_collectives()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=trained,
        optimizer=_adamw_8bit(trained, config) if config.optimizer == "adamw_8bit" else None,
        config=deepspeed_config(config),
    )
    return engine


def deepspeed_config(config: DistillConfig) -> dict[str, Any]:
    """DeepSpeed's configuration. `step.run_step` accumulates gradients, and `learning_rate` sets the rate."""
    zero: dict[str, Any] = {"stage": config.workers.zero_stage}
    if config.workers.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.workers.use_gpu}
    if config.workers.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.workers.use_gpu}
    if config.workers.zero_stage == 3:
        # A parameter that stayed gathered between passes would be the student's in the teacher's pass.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.workers.precision == "mixed_bfloat16":
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if config.optimizer == "adamw":
        settings["optimizer"] = {"type": "AdamW", "params": _adam(config) | {"torch_adam": True}}
    return settings


def learning_rate(step: int, num_steps: int, config: DistillConfig) -> float:
    """The rate of step `step` of `num_steps`, counted from 1: linear warm-up, then constant or half a cosine to 0."""
    warmup_steps = math.ceil(config.warmup * num_steps)
    if step <= warmup_steps:
        return config.learning_rate * step / warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - warmup_steps) / max(num_steps - warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _adam(config: DistillConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": [0.9, 0.999], "eps": config.adam_eps, "weight_decay": 0.0}


def _adamw_8bit(parameters: list[Any], config: DistillConfig) -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optimizer 'adamw_8bit' needs the package bitsandbytes, or set optimizer = 'adamw'"
        ) from error
    return AdamW8bit(parameters, **_adam(config))
