"""Checks an adapter on disk before the engine loads it, and names what is wrong with it.

vLLM would accept a smaller matrix as part of a larger one, and exit over a file that is gone when a request needs it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.errors import DataError
from sdpo_ray.io.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, read_adapter_config
from sdpo_ray.records import FileDigest
from serve.weights import checkpoint_io

CACHED = 32
"""Adapters in memory besides those of one batch."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` may be."""
_PREFIX = "base_model.model."
_FLOATS = ("F32", "BF16", "F16")


def engine_options(run: Run, model: Path) -> dict[str, object]:
    """Return vLLM's engine arguments for `run`'s adapters over `model`; none where it serves none.

    They name the linear layers of the body and leave out the output layer: no adapter of ours changes it, and with LoRA
    around it vLLM 0.32 cannot compute a prompt's log-probs on the CPU, and its engine dies.
    """
    if not run.serve.adapters:
        return {}
    rank = next((rank for rank in _RANKS if rank >= run.serve.max_lora_rank), _RANKS[-1])
    return {
        "enable_lora": True,
        "max_loras": run.serve.adapters,
        # One more than `LoRACache` ever loads: vLLM itself never has to read an adapter again.
        "max_cpu_loras": run.serve.adapters + CACHED + 1,
        "max_lora_rank": rank,
        "lora_target_modules": linear_layers(checkpoint_io.headers(model)),
    }


def linear_layers(base: Mapping[str, checkpoint_io.TensorSpec]) -> list[str]:
    """Return the last parts of the names of the linear layers of a checkpoint's body, sorted."""
    names = (name.split(".") for name, tensor in base.items() if len(tensor.shape) == 2)
    return sorted({parts[-2] for parts in names if "layers" in parts and parts[-1] == "weight"})


def check(
    path: Path, base: Mapping[str, checkpoint_io.TensorSpec], *, max_rank: int, digests: Sequence[FileDigest] = ()
) -> AdapterConfig:
    """Read an adapter and return its configuration. Raises DataError naming why it cannot be served over `base`."""
    try:
        config = read_adapter_config(path)
    except FileNotFoundError:
        raise DataError(f"{path} has no {ADAPTER_CONFIG}") from None
    if not 1 <= config.r <= max_rank:
        raise DataError(f"its rank is {config.r}, and serve.max_lora_rank is {max_rank}")
    found = checkpoint_io.headers(path)
    if not (path / ADAPTER_WEIGHTS).exists():
        raise DataError(f"{ADAPTER_WEIGHTS} is missing")
    for name, tensor in found.items():
        layer, _, part = name.removeprefix(_PREFIX).partition(".lora_")
        target = base.get(f"{layer}.weight")
        if target is None or part not in ("A.weight", "B.weight") or len(target.shape) != 2:
            raise DataError(f"{name} belongs to no linear layer of the base")
        out, into = target.shape
        wanted = (config.r, into) if part == "A.weight" else (out, config.r)
        if tensor.shape != wanted:
            raise DataError(f"{name} is {tensor.shape}, not {wanted}")
        if tensor.dtype not in _FLOATS:
            raise DataError(f"{name} is in {tensor.dtype}")
    checkpoint_io.read(path, digests)
    return config
