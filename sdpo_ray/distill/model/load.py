"""A policy's directory to a transformers model that scores packed rows."""

from pathlib import Path
from typing import Any, Literal

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.model.attention import PACKED, register
from sdpo_ray.upstream.transformers import (
    apply_liger_kernels,
    restore_rotary_frequencies,
    train_checkpointed_layers,
)

Dtype = Literal["float32", "bfloat16"]


def load_policy(path: Path, dtype: Dtype = "float32") -> Any:
    """The transformers causal language model at `path`, in evaluation mode."""
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

    `zero3` is DeepSpeed's configuration under ZeRO-3; each worker then keeps only its shard, from the first layer on.
    `kernels = "auto"` uses FlashAttention and Liger's kernels where the packages are installed, and is for GPUs only.
    The model stays in evaluation mode while it is trained: dropout would make teacher and student two policies.
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
        restore_rotary_frequencies(model)
    model.set_attn_implementation("flash_attention_2" if flash else PACKED)
    if kernels == "auto":
        apply_liger_kernels(model)
    return model


def compute_dtype(config: DistillConfig) -> Dtype:
    """The precision that weights are held in while they are used."""
    return "float32" if config.workers.precision == "float32" else "bfloat16"


def checkpoint_activations(model: Any, *, reentrant: bool) -> None:
    """Keep only each layer's input and recompute the layer for its gradient; ZeRO-3 needs the reentrant kind."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        # Reentrant checkpointing computes no gradient where no input of the first layer requires one.
        model.enable_input_require_grads()
    train_checkpointed_layers(model)
