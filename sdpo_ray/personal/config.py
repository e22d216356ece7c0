"""The learner's configuration for personal policies, and what they require of a run."""

from sdpo_ray.config import DistillConfig, Run
from sdpo_ray.errors import ConfigError


def distill_config(run: Run) -> DistillConfig:
    """The run's `distill` section with the values of `personal`: a small adapter, trained on few interactions.

    `signal.max_staleness` is off, since the draw has its own limit, `personal.max_age_versions`.
    """
    own, values = run.personal, run.distill.model_dump()
    values |= {"learning_rate": own.learning_rate, "batch_size": own.batch_size, "epochs": own.epochs}
    values["lora"] = {"rank": own.rank, "alpha": own.alpha}
    values["signal"] |= {"max_staleness": None}
    return DistillConfig.model_validate(values)


def require_adapters(run: Run) -> None:
    """Raises ConfigError if the run's engines could not serve a personal policy."""
    serve = run.serve
    if serve.swap != "in_place" or not serve.adapters:
        raise ConfigError(
            "personal policies are adapters over whole weights: deploy the run with serve.swap = 'in_place' and "
            f"serve.adapters of 1 or more (it has {serve.swap!r} and {serve.adapters})"
        )
    if run.personal.rank > serve.max_lora_rank:
        raise ConfigError(
            f"personal.rank = {run.personal.rank} is more than serve.max_lora_rank = {serve.max_lora_rank}"
        )
