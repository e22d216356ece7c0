"""`[serve]` of a run file, in the words of Ray Serve and vLLM."""

from typing import Any

import pytest
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig

from sdpo_ray.config import ServeConfig
from serve.ray_options import CPU_ENV, ENGINE_ENV, actor, executor, replicas


def deployment(section: ServeConfig) -> Any:
    """What Ray Serve makes of it. Raises where it does not understand an option."""
    options = {**replicas(section, users=True), "ray_actor_options": actor(section)}
    return serve.deployment(type("Nothing", (), {})).options(**options)


def test_without_autoscaling_there_are_exactly_as_many_replicas_as_the_run_file_says() -> None:
    assert replicas(ServeConfig(num_replicas=3), users=True) == {"num_replicas": 3, "user_config": {"several": True}}
    assert replicas(ServeConfig(), users=True) == {"num_replicas": 1, "user_config": {"several": False}}
    assert deployment(ServeConfig(num_replicas=3)).num_replicas == 3


def test_autoscaling_begins_at_the_number_of_replicas_and_ends_at_its_own() -> None:
    section = ServeConfig.model_validate(
        {
            "num_replicas": 2,
            "autoscale": {
                "max_replicas": 5,
                "target_ongoing_requests": 8,
                "upscale_delay_s": 3,
                "downscale_delay_s": 40,
            },
        }
    )
    scale = AutoscalingConfig(**replicas(section, users=True)["autoscaling_config"])
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (2, 5, 8)
    assert (scale.upscale_delay_s, scale.downscale_delay_s) == (3, 40)
    deployment(section)


def test_only_the_users_replicas_are_more_than_one() -> None:
    section = ServeConfig.model_validate({"num_replicas": 4, "autoscale": {"max_replicas": 8}})
    assert replicas(section, users=False) == {"num_replicas": 1}


def test_a_replica_on_the_cpu_takes_no_gpu_and_compiles_nothing() -> None:
    taken = actor(ServeConfig(num_cpus=2))
    assert (taken["num_cpus"], taken["num_gpus"], taken["resources"]) == (2, 0, {})
    assert taken["runtime_env"]["env_vars"] == ENGINE_ENV | CPU_ENV
    assert executor(ServeConfig()) == "uni"


def test_an_engine_over_four_gpus_is_one_actor_with_four_of_them_and_a_process_for_each() -> None:
    section = ServeConfig(num_gpus=4, tensor_parallel=4, resources={"fast_disk": 1.0})
    taken = actor(section)
    assert (taken["num_gpus"], taken["resources"]) == (4, {"fast_disk": 1.0})
    assert taken["runtime_env"]["env_vars"] == ENGINE_ENV
    assert executor(section) == "mp"
    deployment(section)


def test_fewer_gpus_than_parts_of_an_engine_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_gpus"):
        ServeConfig(num_gpus=1, tensor_parallel=4)
