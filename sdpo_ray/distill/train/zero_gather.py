"""Gather whole parameters from any ZeRO stage, and write them back. Collective: call on every rank."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.upstream.deepspeed import is_partitioned

TEACHER = "teacher/weights.safetensors"
"""The EMA teacher's weights in a candidate's directory, in a folder of their own because vLLM loads all it finds."""


def gather_parameters(parameters: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    """Each parameter, or its fp32 master where there is one, on the CPU in fp32; empty without `keep`."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in parameters.items():
        master = safe_get_full_fp32_param(parameter)
        if keep:
            found[name] = _copied(parameter if master is None else master)
    return found


def gather_teacher(teacher: Teacher, parameters: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    """The teacher's parameters on the CPU in fp32, rounded to the model's precision; empty without `keep`."""
    import deepspeed

    found = {}
    with teacher.weights():
        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=is_partitioned(parameter)):
                if keep:
                    found[name] = _copied(parameter)
    return found


def restore_teacher(teacher: Teacher, parameters: Mapping[str, nn.Parameter], parent: Path) -> None:
    """Resume the EMA teacher from the parent's saved weights.

    No-op if `parent/teacher/weights.safetensors` is missing or its parameter names differ.
    """
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
                sharded = is_partitioned(parameter)
                with deepspeed.zero.GatheredParameters(
                    [parameter], modifier_rank=0 if sharded else None, enabled=sharded
                ):
                    parameter.data.copy_(saved.get_tensor(name))
            teacher.keep()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
