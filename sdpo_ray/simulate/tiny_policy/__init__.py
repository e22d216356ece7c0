"""A 0.97 M-parameter policy that learns from hindsight on a laptop, and its pre-training.

`python -m sdpo_ray.simulate.tiny_policy.train` writes `checkpoint/` with its defaults; `training.json` in it holds the
recipe and the measurements.
"""

from pathlib import Path

__all__ = ["CHECKPOINT"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The committed checkpoint: a directory for `AutoModelForCausalLM`, `AutoTokenizer` and vLLM."""
