"""A policy's directory to a model of transformers, ready to score packed rows."""

from pathlib import Path
from typing import Any, Literal

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.model.attention import PACKED, register

Dtype = Literal["float32", "bfloat16"]


def load_policy(path: Path, dtype: Dtype = "float32") -> Any:
    """The causal language model of transformers at `path`, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=getattr(torch, dtype)).eval()


def load_packed(
    path: Path,
    dtype: Dtype = "float32",
    *,
    kernels: Literal["auto", "torch"] = "torch",
    zero3: dict[str, Any] | None = None,
) -> Any:
    """`load_policy` with attention over packed sequences.

    `zero3` is DeepSpeed's configuration under ZeRO-3: then each worker keeps its shard only, from the first layer on.
    With `auto`, FlashAttention and Liger's kernels where the packages are installed: for GPUs alone. Dropout stays off
    while it learns: it would make the teacher and the student two policies.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.utils import is_flash_attn_2_available

    register()
    flash = kernels == "auto" and is_flash_attn_2_available()
    # transformers shards what it loads for as long as this object is referred to.
    sharding = None if zero3 is None else HfDeepSpeedConfig(zero3)
    model = load_policy(path, dtype)
    del sharding
    if zero3 is not None:
        _restore_rotations(model)
    model.set_attn_implementation("flash_attention_2" if flash else PACKED)
    if kernels == "auto":
        _use_liger(model)
    return model


def compute_dtype(config: DistillConfig) -> Dtype:
    """What the weights are held in while they are used."""
    return "float32" if config.workers.precision == "float32" else "bfloat16"


def checkpoint_activations(model: Any, *, reentrant: bool) -> None:
    """Keep each layer's input alone and compute the layer again for its gradient; ZeRO-3 needs the reentrant kind."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        # It sees no gradient to compute where nothing that enters the first layer needs one.
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # The flag alone, not `train()`: what is in the layer stays in evaluation mode.
            module.training = True


def _restore_rotations(model: Any) -> None:
    """transformers 5.19 under ZeRO-3 rounds rotary frequencies to the weights' bf16: 0.316 becomes 0.3164."""
    for module in model.modules():
        if "inv_freq" in module._buffers:
            fresh = type(module)(module.config)
            for name, buffer in module._buffers.items():
                module._buffers[name] = fresh._buffers[name].to(buffer.device)


def _use_liger(model: Any) -> None:
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        return
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False)
