"""A LoRA adapter's directory in peft's format: names of its files, and what is read of `adapter_config.json`."""

from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.io.files import read_json

ADAPTER = "adapter"
"""Directory of the adapter within a candidate's."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The keys of peft's `adapter_config.json` that this project reads.

    Made by `distill.model.lora_adapter`; read by `distill`, `promote.release` and `serve.lora`.
    """

    base_model_name_or_path: str
    """Directory of the weights beneath the adapter."""
    r: int
    """Rank."""
    lora_alpha: float


def read_adapter_config(directory: Path) -> AdapterConfig:
    """The configuration of the adapter in `directory`. Raises FileNotFoundError, or DataError where it is malformed."""
    return read_json(directory / ADAPTER_CONFIG, AdapterConfig)
