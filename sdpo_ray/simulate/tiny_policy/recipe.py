"""Hyperparameters of the pre-training: all that determines the weights of a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of `train`. Written to `training.json`."""

    seed: int = 0
    num_steps: int = 4_000
    batch_size: int = 48
    learning_rate: float = 3e-3
    """The peak of a one-cycle schedule: a tenth of the steps up, the rest down along a cosine."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    vocab_size: int = 1_400
    hidden_size: int = 128
    num_layers: int = 4
    num_tokenizer_conversations: int = 20_000
    num_measured_prompts: int = 128
    num_final_prompts: int = 1_024
    measure_every_steps: int = 200
