"""Everything that decides the weights of a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One rise and fall of the learning rate, with a fresh optimizer."""

    share: float
    """Of the steps of the whole recipe."""
    learning_rate: float
    """The peak: a tenth of the cycle's steps up, the rest down along a cosine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What `train` follows. Written to `training.json`."""

    seed: int = 0
    num_steps: int = 5_000
    batch_size: int = 48
    cycles: tuple[Cycle, ...] = (Cycle(share=0.6, learning_rate=3e-3), Cycle(share=0.4, learning_rate=2e-3))
    """The first teaches the facts and the complaints one by one; the second, to obey a whole taste at once."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    vocab_size: int = 1_400
    hidden_size: int = 128
    num_layers: int = 4
    num_tokenizer_conversations: int = 20_000
    num_measured_prompts: int = 128
    num_final_prompts: int = 1_024
    measure_every_steps: int = 200
