"""The schema of one TOML run file. Unknown keys fail.

Reading a run imports neither Ray nor torch, so `--help` and `--print-config` answer at once.
"""

from sdpo_ray.config.data import CaptureConfig, CurateConfig, TenantConfig
from sdpo_ray.config.distill import DistillConfig
from sdpo_ray.config.personal import PersonalConfig
from sdpo_ray.config.policy import PolicyConfig
from sdpo_ray.config.presets import PRESETS
from sdpo_ray.config.promotion import CanaryConfig, EvaluateConfig, PromoteConfig
from sdpo_ray.config.run import Run, keys, load_run, parse_run, to_json
from sdpo_ray.config.serving import LimitsConfig, ServeConfig
from sdpo_ray.config.simulation import SimulateConfig

__all__ = [
    "PRESETS",
    "CanaryConfig",
    "CaptureConfig",
    "CurateConfig",
    "DistillConfig",
    "EvaluateConfig",
    "LimitsConfig",
    "PersonalConfig",
    "PolicyConfig",
    "PromoteConfig",
    "Run",
    "ServeConfig",
    "SimulateConfig",
    "TenantConfig",
    "keys",
    "load_run",
    "parse_run",
    "to_json",
]
