"""Everything that decides the weights of a checkpoint."""

from dataclasses import dataclass, replace

from sdpo_ray.simulate.wordings import Attribute


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One rise and fall of the learning rate, with a fresh optimizer."""

    num_steps: int
    learning_rate: float
    """The peak: a tenth of the cycle's steps up, the rest down along a cosine."""
    focus: Attribute | None = None
    """What half of the wishes in hindsight are about; None treats all wishes alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What `train` follows. Written to `training.json`."""

    seed: int = 0
    batch_size: int = 48
    cycles: tuple[Cycle, ...] = (
        Cycle(num_steps=3_000, learning_rate=3e-3),
        Cycle(num_steps=2_000, learning_rate=2e-3),
        Cycle(num_steps=1_600, learning_rate=2e-3, focus="emoji"),
    )
    """Two cycles teach the facts and every wish but one: an emoji is decided last, at the end of an answer, and
    after 5,000 steps wishes about it are still obeyed at chance."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    vocab_size: int = 1_400
    hidden_size: int = 128
    num_layers: int = 4
    num_tokenizer_conversations: int = 20_000
    num_measured_prompts: int = 128
    num_final_prompts: int = 1_024
    measure_every_steps: int = 200

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all cycles."""
        return sum(cycle.num_steps for cycle in self.cycles)

    def shortened(self, num_steps: int) -> "Recipe":
        """Return the recipe with every cycle scaled so that they take about `num_steps` together."""
        share = num_steps / self.num_steps
        return replace(self, cycles=tuple(replace(c, num_steps=round(share * c.num_steps)) for c in self.cycles))
