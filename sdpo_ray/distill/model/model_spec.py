"""A model's sizes from its `config.json`, without its weights.

Parameters are counted on torch's meta device, where tensors have shapes and no values.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_ray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Sizes of a dense decoder with gated feed-forward. Made by `read_model_spec`; read by `train.memory`."""

    num_parameters: int
    """Tied weights counted once."""
    num_layers: int
    hidden: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    normed_heads: bool
    """Whether queries and keys are normalised per head, as in Qwen3."""
    linears: tuple[tuple[int, int], ...]
    """(in, out) of every linear layer but the head; these get adapters."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_key_heads * self.head_dim

    @property
    def num_head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    def num_adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA factors [rank, in] and [out, rank] on every linear layer but the head."""
        return sum(rank * (into + out) for into, out in self.linears)


def read_model_spec(path: Path) -> ModelSpec:
    """The sizes in a `config.json`, or in that of a policy's directory.

    Raises ConfigError where there is none, or it is not of a dense decoder with gated feed-forward layers.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        facts = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {file}: set policy.base to a policy's directory, or policy.shape to its config.json"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    return _counted(facts, file)


def _counted(facts: dict[str, Any], file: Path) -> ModelSpec:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.for_model(**facts)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{file} is not of a causal language model that transformers knows: {error}") from None
    model.tie_weights()
    body = dict(model.base_model.named_modules())
    if not any(name.endswith("mlp.gate_proj") for name in body) or hasattr(config, "num_experts"):
        raise ConfigError(f"{file}: memory is estimated only for dense decoders with gated feed-forward layers")
    return ModelSpec(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        normed_heads=any(name.endswith("q_norm") for name in body),
        linears=tuple(
            (module.in_features, module.out_features) for module in body.values() if isinstance(module, torch.nn.Linear)
        ),
    )
