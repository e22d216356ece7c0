"""LoRA adapters by peft: inserted into a model, saved in peft's format, and merged into the weights that are served.

Every update continues its parent's adapter, so the weights beneath it stay the run's base, and the model with the
adapter switched off is that base.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_ray.config.distill import LoraConfig
from sdpo_ray.errors import LearnerError
from sdpo_ray.io.adapter_config import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from sdpo_ray.io.files import write_json

_NAME = "default"
_PEFT_PREFIX = "base_model.model."


def base_of(parent: Path, lora: LoraConfig) -> Path:
    """The weights beneath an update's adapter: those beneath the parent's of the same shape, else the parent."""
    directory = parent / ADAPTER
    if not lora.rank or not (directory / ADAPTER_CONFIG).exists():
        return parent
    config = read_adapter_config(directory)
    base = Path(config.base_model_name_or_path)
    return base if (config.r, config.lora_alpha) == (lora.rank, lora.alpha) and base.exists() else parent


def inject(model: Any, lora: LoraConfig, *, parent: Path, base: Path, seed: int) -> None:
    """Insert an adapter into all linear layers of the body and freeze everything else; the same on every worker.

    The adapter is the parent's where `base` is not the parent itself, else a new one that changes nothing yet. Raises
    LearnerError where the parent's adapter does not fit the model.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear")
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    if base != parent:
        saved = load_file(parent / ADAPTER / ADAPTER_WEIGHTS)
        found = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in saved.items()}
        result = set_peft_model_state_dict(model, found, adapter_name=_NAME)
        mismatched = [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]
        if mismatched:
            raise LearnerError(f"{parent / ADAPTER} does not fit {base}: {mismatched[0]}")


def save(trained: dict[str, Tensor], directory: Path, *, base: Path, lora: LoraConfig) -> None:
    """Write the adapter in peft's format. `trained` has the model's own parameter names."""
    from safetensors.torch import save_file

    directory.mkdir()
    names = {name: name.replace(f".{_NAME}.", ".") for name in trained}
    save_file(
        {_PEFT_PREFIX + names[name]: tensor.contiguous() for name, tensor in trained.items()},
        directory / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained})
    write_json(
        directory / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0,
            "target_modules": modules,
            "bias": "none",
        },
    )


def merged(base: dict[str, Tensor], trained: dict[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """The base's tensors plus alpha / rank B A, added in fp32, in the base's own precision.

    Raises LearnerError for a layer that the base does not have.
    """
    weights = dict(base)
    for name, down in trained.items():
        if ".lora_A." not in name:
            continue
        target = name.split(".lora_A.")[0] + ".weight"
        up = trained[name.replace(".lora_A.", ".lora_B.")]
        if target not in weights:
            raise LearnerError(f"the adapter changes {target}, which the base does not have")
        delta = (lora.alpha / lora.rank) * (up.float() @ down.float())
        weights[target] = (weights[target].float() + delta).to(weights[target].dtype)
    return weights
