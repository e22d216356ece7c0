"""What a run must be to have personal policies, and how they learn in it."""

from sdpo_ray.config import DistillConfig, Run
from sdpo_ray.errors import ConfigError


def distill_config(run: Run) -> DistillConfig:
    """How a personal policy learns: as the run does, but a small adapter from few interactions.

    Which answers are too old is settled by the draw.
    """
    own, values = run.personal, run.distill.model_dump()
    values |= {"learning_rate": own.learning_rate, "batch_size": own.batch_size, "epochs": own.epochs}
    values["lora"] = {"rank": own.rank, "alpha": own.alpha}
    values["signal"] |= {"max_staleness": None}
    return DistillConfig.model_validate(values)


def require_adapters(run: Run) -> None:
    """Raises ConfigError where the run's engines could not serve a personal policy."""
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
