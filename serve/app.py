"""`serve.app:build`: the Ray Serve application of one run file, for `serve deploy` and KubeRay."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from sdpo_ray.config import load_run
from serve.policy import CPU_ENV, ENGINE_ENV, Policy

MAX_ONGOING_REQUESTS = 1000
"""Far above what vLLM admits: vLLM's own queue limit answers 503, Ray Serve's would hide it."""


class Arguments(BaseModel):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    run_file: str
    overrides: list[str] = []
    """`section.key=value`, as for the jobs."""
    audience: Literal["users", "examiner"] = "users"


def build(args: Arguments) -> Application:
    """One deployment of the policy for users, or of the engine that examines candidates."""
    run = load_run(args.run_file, args.overrides)
    gpu = run.serve.num_gpus > 0
    options: dict[str, Any] = {
        "num_cpus": run.serve.num_cpus,
        "num_gpus": run.serve.num_gpus,
        "runtime_env": {"env_vars": ENGINE_ENV if gpu else ENGINE_ENV | CPU_ENV},
    }
    deployment = serve.deployment(serve.ingress()(Policy)).options(
        name="policy",
        num_replicas=run.serve.num_replicas if args.audience == "users" else 1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options=options,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
    )
    return deployment.bind(run=run.model_dump(mode="json"), audience=args.audience)
