"""The section `[distill.workers]`."""

from typing import Literal

from pydantic import Field

from sdpo_ray.config.section import Section


class WorkersConfig(Section):
    """Where and in what precision an update is computed."""

    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers."""
    min_workers: int | None = Field(default=None, ge=1)
    """Fewest workers with which a lost group resumes when the cluster has shrunk. None waits for `num_workers`."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards the optimizer's state, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, the optimizer's state (ZeRO 1-3), or parameters too (ZeRO 3)."""
    precision: Literal["float32", "mixed_bfloat16", "pure_bfloat16"] = "float32"
    """`mixed_bfloat16` computes in bfloat16 with fp32 master weights; `pure_bfloat16` has no master weights."""
    max_tokens_per_micro_batch: int = Field(default=4096, ge=64)
    """Most tokens of one packed forward pass, in each context."""
    logits_mib: int = Field(default=128, ge=1)
    """Size in MiB of the fp32 logits that exist at a time, whatever the vocabulary."""
    activation_checkpointing: bool = False
    """Keep each layer's input only, and recompute the layer for its gradient."""
    kernels: Literal["auto", "torch"] = "auto"
    """`auto` uses FlashAttention and Liger where there are a GPU and the packages; `torch` never does."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints from which a lost worker group resumes."""
    max_failures: int = Field(default=1, ge=0)
    """How many times a lost worker group is restarted."""
