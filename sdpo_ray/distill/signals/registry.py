"""Learning signals by name, as a run file names them."""

from collections.abc import Callable, Mapping
from importlib import import_module

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.signals.protocol import Signal
from sdpo_ray.distill.signals.reverse_kl import ReverseKL
from sdpo_ray.distill.signals.sampled_token import SampledToken
from sdpo_ray.distill.signals.supervised import Supervised
from sdpo_ray.errors import ConfigError

SIGNALS: Mapping[str, Callable[[DistillConfig], Signal]] = {
    "sampled_token": SampledToken,
    "topk_reverse_kl": ReverseKL,
    "full_kl": ReverseKL,
    "sft": Supervised,
}
"""The values of `signal.estimator`, and `sft` of `objective`."""


def signal_of(config: DistillConfig) -> Signal:
    """The signal that `config` names: one of `SIGNALS`, or `module:Class` of a class like theirs.

    Raises ConfigError where the module or class does not exist, or its teacher's weights would be sharded.
    """
    name = "sft" if config.objective == "sft" else config.signal.estimator
    if name in SIGNALS:
        return SIGNALS[name](config)
    module, _, attribute = name.partition(":")
    try:
        signal: Signal = getattr(import_module(module), attribute)(config)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"distill.signal.estimator {name!r} cannot be imported: {error}") from error
    if signal.compares_distributions and config.shards_teacher:
        raise ConfigError(config.sharded_teacher_message)
    return signal
