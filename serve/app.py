"""`serve.app:build`: builds the Ray Serve application of one run file, for `serve deploy` and KubeRay."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from sdpo_ray.config import load_run
from serve.deployment import PolicyDeployment
from serve.lifecycle.bind_check import require_keys
from serve.ray_options import actor, replicas

MAX_ONGOING_REQUESTS = 1000
"""Far above what vLLM admits: beyond its queue limit vLLM answers 503, which a lower limit here would hide."""

CLOSE_S = 15.0
"""For the journal, the traces and the engine to close, after a stopped replica's last request."""


class Arguments(BaseModel):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    run_file: str
    overrides: list[str] = []
    """Each `section.key=value`, as for the jobs."""
    audience: Literal["users", "evaluator", "canary"] = "users"


def build(args: Arguments) -> Application:
    """Return the deployment of the policy for one audience. Raises ConfigError."""
    run = load_run(args.run_file, args.overrides)
    if args.audience == "users":
        require_keys(run.serve.host, run.layout.api_keys)
    deployment = serve.deployment(serve.ingress()(PolicyDeployment)).options(
        name="policy",
        **replicas(run.serve, users=args.audience == "users"),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options=actor(run.serve),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=run.serve.drain_s + CLOSE_S,
        graceful_shutdown_wait_loop_s=0.5,
        # `serve.gateway.access_log` writes the lines instead, with more in them.
        logging_config={"encoding": "JSON", "enable_access_log": False},
    )
    return deployment.bind(run=run.model_dump(mode="json"), audience=args.audience)
