"""Whole parameters out of any ZeRO stage, and back into it. Every function is collective: all workers call it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sdpo_ray.distill.loss.teacher import Teacher

TEACHER = "teacher/weights.safetensors"
"""The moving average's weights in a candidate's directory: not beside the policy's, for vLLM loads all it finds."""


def gather_parameters(parameters: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    """Each parameter on the CPU in fp32, its master where there is one, for the worker that is to `keep` them."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in parameters.items():
        master = safe_get_full_fp32_param(parameter)
        if keep:
            found[name] = _copied(parameter if master is None else master)
    return found


def gather_teacher(teacher: Teacher, parameters: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    """The teacher's parameters on the CPU in fp32, rounded to what the model computes in; as `whole`."""
    import deepspeed

    found = {}
    with teacher.weights():
        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if keep:
                    found[name] = _copied(parameter)
    return found


def restore_teacher(teacher: Teacher, parameters: Mapping[str, nn.Parameter], parent: Path) -> None:
    """Let a moving average go on from the parent's, where the parent has one of the same parameters."""
    import deepspeed
    from safetensors import safe_open

    file = parent / TEACHER
    if not file.exists():
        return
    with safe_open(file, "pt") as saved:
        names = set(saved.keys())
        if names != parameters.keys():
            return
        with teacher.weights(), torch.no_grad():
            for name, parameter in parameters.items():
                sharded = hasattr(parameter, "ds_id")
                with deepspeed.zero.GatheredParameters(
                    [parameter], modifier_rank=0 if sharded else None, enabled=sharded
                ):
                    parameter.data.copy_(saved.get_tensor(name))
            teacher.keep()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
