"""DeepSpeed for one worker, and the learning rate of each step."""

import logging
import math
from typing import Any

from sdpo_ray.config import DistillConfig
from sdpo_ray.errors import ConfigError


def deepspeed_engine(module: Any, config: DistillConfig) -> Any:
    """A DeepSpeed engine over what of `module` is trained. Raises ConfigError where the optimizer is not installed."""
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not config.workers.use_gpu:
        # It would compile its shared-memory collectives at first use: a minute and a compiler, for what gloo does.
        deepspeed.ops.__compatible_ops__ = {}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=trained,
        optimizer=_adamw_8bit(trained, config) if config.optimizer == "adamw_8bit" else None,
        config=deepspeed_config(config),
    )
    return engine


def deepspeed_config(config: DistillConfig) -> dict[str, Any]:
    """What DeepSpeed is told; accumulation is driven by `step.run_step`, the rate by `learning_rate`."""
    zero: dict[str, Any] = {"stage": config.workers.zero_stage}
    if config.workers.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.workers.use_gpu}
    if config.workers.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.workers.use_gpu}
    if config.workers.zero_stage == 3:
        # A parameter that stays gathered between passes would be the student's in the teacher's pass.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.workers.precision == "mixed_bfloat16":
        told |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if config.optimizer == "adamw":
        told["optimizer"] = {"type": "AdamW", "params": _adam(config) | {"torch_adam": True}}
    return told


def learning_rate(step: int, num_steps: int, config: DistillConfig) -> float:
    """The rate of the `step`-th of `num_steps` steps, from 1: a linear rise, then constant or half a cosine to 0."""
    rising = math.ceil(config.warmup * num_steps)
    if step <= rising:
        return config.learning_rate * step / rising
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - rising) / max(num_steps - rising, 1)
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
