"""The section `[simulate]`."""

from pydantic import Field

from sdpo_ray.config.section import Section


class SimulateConfig(Section):
    """Simulated users, for a run without live traffic."""

    persona: str = "concise"
    """Preference of the users, a key of `simulate.users.PERSONAS`."""
    concurrency: int = Field(default=4, ge=1)
    """Users that chat at a time."""
    think_s: float = Field(default=0.5, gt=0)
    """Mean seconds between reading a response and writing the next message."""
    stream_share: float = Field(default=0.5, ge=0, le=1)
    """Share of requests that are streamed."""
    people: int = Field(default=64, ge=1)
    """Different users, each under its own name."""
