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
    Serve,
    Simulate,
    keys,
    load_run,
    parse_run,
    to_json,
)

__all__ = [
    "PRESETS",
    "Capture",
    "Curate",
    "Distill",
    "Evaluate",
    "Policy",
    "Promote",
    "Run",
    "Serve",
    "Simulate",
    "Tenant",
    "keys",
    "load_run",
    "parse_run",
    "to_json",
]
