"""The teacher of an update: the live policy, its moving average, the update's parent, or the base.

The four differ in trainable parameters only, so a teacher is a second set of them that replaces the student's while it
scores. Under ZeRO-3 that is this worker's shard of each parameter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdpo_ray.config.distill import TeacherConfig
from sdpo_ray.upstream.deepspeed import local_tensor


class Teacher:
    """The teacher's parameters, in fp32: a bf16 average would lose steps smaller than half its last bit."""

    def __init__(self, config: TeacherConfig, parameters: Sequence[nn.Parameter]) -> None:
        self._rate = config.ema_rate if config.kind == "ema" else 0.0
        self._held = [local_tensor(parameter) for parameter in parameters]
        self.shadow: list[Tensor] = []
        """One tensor per parameter, of the shape that this worker holds; empty for a live teacher."""
        if config.kind == "adapter_off":
            # An adapter of zeros adds exactly nothing to the base.
            self.shadow = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in self._held]
        elif config.kind != "live":
            self.shadow = [tensor.detach().float().clone() for tensor in self._held]

    @contextmanager
    def weights(self) -> Iterator[None]:
        """While open, the model computes with the teacher's weights and must not be trained."""
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
        """Copy the model's present weights, while `weights` is open, into the teacher's parameters."""
        self.load(self._held)

    def load(self, shadow: Sequence[Tensor]) -> None:
        """Replace the teacher's parameters by saved ones of the same shapes."""
        for own, saved in zip(self.shadow, shadow, strict=True):
            own.copy_(saved)
