"""One implementation in a separate process: it runs a step on request and reports time and memory.

Extra memory is what a step needs beyond the weights and their gradients. On a CPU: the highest resident size during
a step (VmHWM, reset before each through /proc/self/clear_refs), minus the resident size once weights and gradients are
allocated and one step over a single short example has loaded all code. On a GPU: the same of torch's allocator.
"""

import ctypes
import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from workload import Workload, batch, model, trained


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Time, loss and extra memory of one step."""

    seconds: float
    loss: float
    extra_mib: float


class Implementation:
    """A new process that holds the model. Its methods raise RuntimeError where it fails or is killed."""

    def __init__(self, name: str, work: Workload) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, name, work), daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> StepCost:
        cost: StepCost = self._request(("step", None))
        return cost

    def cosine(self, gradient: Path) -> float:
        """Cosine between the last step's gradient and the one in the file."""
        return float(self._request(("cosine", gradient)))

    def save(self, gradient: Path) -> None:
        """Write the last step's gradient."""
        self._request(("save", gradient))

    def matmul_tflops(self) -> float:
        """Rate of one large matrix product on this device, in the precision of the model."""
        return float(self._request(("matmul", None)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=60)

    def _request(self, request: tuple[str, Path | None]) -> Any:
        # A process that failed to start has left its reason in the pipe.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(request)
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=60)
            code = self._process.exitcode
            why = "was killed, most likely out of memory" if code == -signal.SIGKILL else f"ended with {code}"
            raise RuntimeError(f"{self.name}: the process {why}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        return answer


def _serve(pipe: Connection, name: str, work: Workload) -> None:
    import peers
    import torch

    try:
        policy = model(work, exact=name == "reference")
        make = {"authors, online": partial(peers.authors, online=True)}.get(name) or getattr(peers, name)
        step: Callable[[Sequence[Any]], float] = make(policy, work)
        examples = batch(work)
        parameters = trained(policy)
        for each in parameters:
            # Written to, so that its pages are resident.
            each.grad = torch.empty_like(each).zero_()
        step(batch(_short(work)))
        before = _resident(work.device)
    except Exception:
        pipe.send(traceback.format_exc())
        return
    while True:
        try:
            order, path = pipe.recv()
        except EOFError:
            return
        try:
            match order:
                case "step":
                    pipe.send(_measure(step, examples, parameters, before, work.device))
                case "save":
                    torch.save([each.grad.float() for each in parameters], path)
                    pipe.send(True)
                case "cosine":
                    pipe.send(_cosine(parameters, path))
                case "matmul":
                    pipe.send(_matmul_tflops(work.device))
        except Exception:
            pipe.send(traceback.format_exc())


def _measure(
    step: Callable[[Sequence[Any]], float],
    examples: Sequence[Any],
    parameters: Sequence[Any],
    before: float,
    device: str,
) -> StepCost:
    import torch

    for each in parameters:
        each.grad.zero_()
    _reset_peak(device)
    began = time.perf_counter()
    loss = step(examples)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return StepCost(seconds=seconds, loss=loss, extra_mib=_peak(device) - before)


def _short(work: Workload) -> Workload:
    return replace(work, batch_size=1, scale=0.01, spread=0.0)


def _resident(device: str) -> float:
    """MiB."""
    import torch

    if device == "cuda":
        return float(torch.cuda.memory_allocated()) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _reset_peak(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> float:
    """MiB."""
    import torch

    return float(torch.cuda.max_memory_allocated()) / 2**20 if device == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _cosine(parameters: Sequence[Any], path: Path) -> float:
    import torch

    dot = mine = other = 0.0
    for each, saved in zip(parameters, torch.load(path, mmap=True, map_location="cpu"), strict=True):
        a, b = each.grad.cpu().flatten().double(), saved.flatten().double()
        dot, mine, other = dot + float(a @ b), mine + float(a @ a), other + float(b @ b)
    return dot / math.sqrt(mine * other)


def _matmul_tflops(device: str) -> float:
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best / 1e12)
