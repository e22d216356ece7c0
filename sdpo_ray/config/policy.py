"""The section `[policy]`."""

from typing import Literal

from pydantic import Field

from sdpo_ray.config.section import Section


class PolicyConfig(Section):
    """The policy that is served and trained."""

    base: str = "sdpo_ray/simulate/tiny_policy/checkpoint"
    """Directory of the base policy, version 1: config, tokenizer and safetensors."""
    shape: str = ""
    """A `config.json` used in place of the base's own in a dry run, on a machine without the base."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision that the engine computes in."""
    max_model_len: int = Field(default=512, ge=16)
    """Most tokens of a prompt and its response together."""
