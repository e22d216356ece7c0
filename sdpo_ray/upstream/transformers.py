"""Private parts of transformers and Liger that the learner calls or depends on.

Both are imported inside the functions, so that a process that does not train need not load them.
"""

from functools import partial
from typing import Any

from sdpo_ray.upstream import PrivateUse


def restore_rotary_frequencies(model: Any) -> None:
    """Recompute the rotary frequencies of a model that was loaded under ZeRO-3.

    transformers 5.19 rounds them to the weights' bf16 there: 0.316 becomes 0.3164.
    """
    for module in model.modules():
        if "inv_freq" in module._buffers:
            fresh = type(module)(module.config)
            for name, buffer in module._buffers.items():
                module._buffers[name] = fresh._buffers[name].to(buffer.device)


def train_checkpointed_layers(model: Any) -> None:
    """Make gradient checkpointing work in a model in evaluation mode.

    A checkpointed layer recomputes its activations only where its own flag `training` is set. The flag alone is set,
    not `train()`, so that the modules in the layer stay in evaluation mode.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def apply_liger_kernels(model: Any) -> None:
    """Replace a model's norms, rotary and feed-forward layers by Liger's kernels; no-op without Liger."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        return
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False)


_use = partial(PrivateUse, distribution="transformers", version="5.19.0")

PRIVATE_USES = (
    _use(
        symbol="transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding",
        reason="`inv_freq`, here Qwen3's, is computed again: loading under ZeRO-3 rounds it to the weights' bf16",
        until="transformers loads buffers under ZeRO-3 in their own precision",
    ),
    _use(
        symbol="transformers.modeling_layers.GradientCheckpointingLayer.__call__",
        reason="it checkpoints only where `training` is set, but training mode of the model would switch dropout on",
        until="`gradient_checkpointing_enable` works in evaluation mode",
    ),
    _use(
        symbol="transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref",
        reason="`from_pretrained` shards what it loads for as long as the `HfDeepSpeedConfig` object is referred to",
        until="`from_pretrained` takes the ZeRO configuration as an argument",
    ),
    _use(
        symbol="transformers.masking_utils._preprocess_mask_arguments",
        reason="creates no mask for an attention without a registered mask function, such as `distill.model.attention`",
        until="`AttentionInterface.register` says whether the attention needs a mask",
    ),
    PrivateUse(
        distribution="liger-kernel",
        version="0.8.5",
        symbol="liger_kernel.transformers._apply_liger_kernel_to_instance",
        reason="a loaded model is patched; the public functions patch classes before loading, one per architecture",
        until="Liger has a public function for instances",
    ),
)
