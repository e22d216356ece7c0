"""The section `[personal]`."""

from pydantic import Field

from sdpo_ray.config.section import Section


class PersonalConfig(Section):
    """Personal policies: a LoRA adapter over the shared policy for one user or tenant. Needs `serve.adapters`."""

    min_interactions: int = Field(default=32, ge=1)
    """Fewest interactions of an owner for a first update, and fewest new ones for another."""
    snapshot_size: int = Field(default=256, ge=1)
    """Newest interactions of an owner that one update trains on."""
    max_age_versions: int = Field(default=8, ge=0)
    """Most policy versions between a response and the champion; older responses are left out."""
    held_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of an owner's conversations that the adapter is evaluated on and not trained on."""
    rank: int = Field(default=8, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(default=16, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of an owner's update."""
    batch_size: int = Field(default=8, ge=1)
    """Interactions per optimizer step."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the snapshot."""
    min_gain: float = Field(default=0.0, ge=0)
    """Lowest lower end of the gain's interval, in nats a token: how much closer the adapter must come, on held-out
    interactions, to the shared policy that has read the follow-up."""
