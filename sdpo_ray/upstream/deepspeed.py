"""Private parts of DeepSpeed that the learner calls or sets.

DeepSpeed is imported inside the functions, because it picks its accelerator when it is imported.
"""

from functools import partial
from typing import Any

from sdpo_ray.upstream import PrivateUse


def local_tensor(parameter: Any) -> Any:
    """The tensor that holds this worker's numbers of a parameter: under ZeRO-3 its shard, else the parameter itself."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 has split a parameter over the workers."""
    return hasattr(parameter, "ds_id")


def disable_cpu_collectives() -> None:
    """Use gloo for collectives on CPUs.

    Otherwise DeepSpeed compiles its shared-memory collectives at first use, which takes a minute and a compiler.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


_use = partial(PrivateUse, distribution="deepspeed", version="0.19.8")

PRIVATE_USES = (
    _use(
        symbol="deepspeed.runtime.zero.partition_parameters.Init.ds_tensor",
        reason="the teacher's weights replace this worker's shard of each parameter and are averaged with it",
        until="DeepSpeed has a public way to read and replace the local shard of a ZeRO-3 parameter",
    ),
    _use(
        symbol="deepspeed.runtime.zero.partition_parameters.Init.ds_id",
        reason="`GatheredParameters` accepts partitioned parameters alone, and nothing public tells which are",
        until="`GatheredParameters` accepts whole parameters too",
    ),
    _use(
        symbol="deepspeed.ops._probe_compatible_ops",
        reason="its result `deepspeed.ops.__compatible_ops__` is emptied, so that no collective is compiled on a CPU",
        until="DeepSpeed has an option that keeps the torch backend's own collectives",
    ),
)
