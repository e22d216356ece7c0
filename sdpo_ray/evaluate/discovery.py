"""Finds the probes of a package: one `PROBE` a module, no list to edit."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterable
from types import ModuleType

from sdpo_ray.config import PromoteConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.evaluate import probes
from sdpo_ray.evaluate.probe import Probe, Suite
from sdpo_ray.records import ScoreSpec


def find_probes(suite: Suite, rules: PromoteConfig, package: ModuleType = probes) -> tuple[Probe, ...]:
    """Probes of `suite` in the modules of `package`, in alphabetical order of the modules.

    Raises ConfigError for a module without a `PROBE`, for probes that share a name or a score, for a score bounded by a
    key that `[promote]` has not, and for a bound in `rules` of a score that no probe bounds.
    """
    found = [_probe_of(f"{package.__name__}.{module.name}") for module in pkgutil.iter_modules(package.__path__)]
    specs = scores_of(found)
    _require_distinct("probes", (probe.name for probe in found))
    _require_distinct("scores", (spec.name for spec in specs))
    for spec in specs:
        if spec.setting and spec.setting not in PromoteConfig.model_fields:
            raise ConfigError(f"the score {spec.name} is bounded by promote.{spec.setting}, which is no key")
    bounded = sorted(spec.name for spec in specs if spec.direction)
    if unknown := sorted(set(rules.bounds).difference(bounded)):
        raise ConfigError(f"promote.bounds: no probe bounds {', '.join(unknown)}; bounded are {', '.join(bounded)}")
    return tuple(probe for probe in found if suite in probe.suites)


def scores_of(found: Iterable[Probe]) -> tuple[ScoreSpec, ...]:
    """Every score that these probes declare, in their order."""
    return tuple(spec for probe in found for spec in probe.scores)


def _probe_of(module: str) -> Probe:
    probe = getattr(importlib.import_module(module), "PROBE", None)
    if not isinstance(probe, Probe):
        raise ConfigError(f"{module} defines no PROBE = Probe(...)")
    return probe


def _require_distinct(kind: str, names: Iterable[str]) -> None:
    if repeated := sorted(name for name, n in Counter(names).items() if n > 1):
        raise ConfigError(f"two {kind} are named {', '.join(repeated)}")
