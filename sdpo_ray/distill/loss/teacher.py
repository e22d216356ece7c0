"""Who scores answers under hindsight: the live policy, its moving average, the update's parent, or the base.

Only trainable parameters differ between the four, so a teacher is a second set of them, put in the student's place
while it scores. Under ZeRO-3 that is this worker's shard of each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_ray.config.distill import TeacherConfig


class Teacher:
    """The teacher's parameters, in fp32: a bf16 average would lose steps smaller than half its last bit."""

    def __init__(self, config: TeacherConfig, parameters: Sequence[nn.Parameter]) -> None:
        self._rate = config.ema_rate if config.kind == "ema" else 0.0
        self._held = [_held(parameter) for parameter in parameters]
        self.shadow: list[Tensor] = []
        if config.kind == "adapter_off":
            # An adapter of zeros adds exactly nothing to the base.
            self.shadow = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in self._held]
        elif config.kind != "live":
            self.shadow = [tensor.detach().float().clone() for tensor in self._held]

    @contextmanager
    def weights(self) -> Iterator[None]:
        """While open, the model computes with the teacher's weights; nothing may be trained meanwhile."""
        students = [tensor.data for tensor in self._held]
        for tensor, shadow in zip(self._held, self.shadow, strict=False):
            tensor.data = shadow.to(tensor.dtype)
        try:
            yield
        finally:
            for tensor, student in zip(self._held, students, strict=True):
                tensor.data = student

    def follow(self) -> None:
        """phi <- (1 - rate) phi + rate theta, after an optimizer step."""
        if not self._rate:
            return
        for tensor, shadow in zip(self._held, self.shadow, strict=True):
            shadow.lerp_(tensor.detach().float(), self._rate)

    def keep(self) -> None:
        """Take what the model holds now, while `weights` is open, for the teacher's parameters."""
        self.load(self._held)

    def load(self, shadow: Sequence[Tensor]) -> None:
        """Go on from a teacher that was saved; each tensor has its parameter's shape."""
        for mine, saved in zip(self.shadow, shadow, strict=True):
            mine.copy_(saved)


def _held(parameter: nn.Parameter) -> Any:
    """Where a parameter's numbers are: ZeRO-3 gathers them from this worker's shard before each use."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
