"""The schema of one TOML run file. Unknown keys fail; every default is the product's.

Reading a run imports neither Ray nor torch, so `--help` and `--print-config` answer at once.
"""

from sdpo_ray.config.data import Capture, Curate, Tenant
from sdpo_ray.config.distill import Distill
from sdpo_ray.config.presets import PRESETS
from sdpo_ray.config.run import (
    Evaluate,
    Policy,
    Promote,
    Run,
    Simulate,
    keys,
    load_run,
    parse_run,
    to_json,
)
from sdpo_ray.config.serving import Limits, Personal, Serve, TrialRules

__all__ = [
    "PRESETS",
    "Capture",
    "Curate",
    "Distill",
    "Evaluate",
    "Limits",
    "Personal",
    "Policy",
    "Promote",
    "Run",
    "Serve",
    "Simulate",
    "Tenant",
    "TrialRules",
    "keys",
    "load_run",
    "parse_run",
    "to_json",
]
