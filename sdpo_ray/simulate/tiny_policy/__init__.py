"""A 0.97 M-parameter policy that learns from hindsight on a laptop, and the recipe that makes it.

`checkpoint/` is what `python -m sdpo_ray.simulate.tiny_policy.train` writes with its defaults; `training.json`
in it holds the recipe and what was measured.
"""

from pathlib import Path

__all__ = ["CHECKPOINT"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The committed checkpoint: a directory for `AutoModelForCausalLM`, `AutoTokenizer` and vLLM."""
