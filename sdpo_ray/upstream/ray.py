"""Private parts of Ray Core, Ray Serve, Ray Data and Ray Train that this project calls or replaces.

Ray is imported inside the functions: commands import this module and answer `--help` without Ray.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from sdpo_ray.upstream import PrivateUse

TRAIN_POLLING = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
"""Environment of Ray Train's controller. With its default of 2 s a run ends up to 4 s after its last step."""

DATA_PROGRESS_LOGGER = "ray.data._internal.progress"
"""Logger of Ray Data that warns on every execution whose progress bars are off."""


async def serve_http_host() -> str | None:
    """Return the address that Ray Serve's HTTP servers of this cluster bind to; None for all interfaces.

    It may differ from the run file's: `http_options` belong to the cluster. Behind HAProxy Ray's default is 0.0.0.0.
    """
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    options = await ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE).get_http_config.remote()
    host: str | None = options.host
    return host


def replica_is_draining() -> bool:
    """Return whether Ray Serve has begun to stop the replica that runs in this process."""
    return bool(getattr(_replica(), "_shutting_down", False))


async def drain_replica() -> None:
    """Run Ray Serve's own graceful shutdown of the replica in this process: finish its requests, then its callable."""
    await _replica().perform_graceful_shutdown()


def replace_sigterm_handler(handler: Callable[..., None]) -> None:
    """Call `handler` instead of exiting when this Ray worker receives SIGTERM.

    Ray's own signal handler runs in the main thread, where no code of a deployment runs and which alone could install
    another (`Worker.main_loop`). The function that it calls is replaced instead.
    """
    import ray

    ray._private.worker.raise_sys_exit_with_custom_error_message = handler


def _replica() -> Any:
    """Ray Serve's `Replica` in this process; None in a process that is no replica."""
    import ray

    worker = ray._private.worker.global_worker
    return getattr(worker.actors.get(worker.actor_id), "_replica_impl", None)


_use = partial(PrivateUse, distribution="ray", version="2.60.0")
_HOOK = "Ray offers a hook for the start or the end of a replica's draining, or for SIGTERM"

PRIVATE_USES = (
    _use(
        symbol="ray._private.worker.raise_sys_exit_with_custom_error_message",
        reason="replaced, so that SIGTERM drains a replica; Ray ends the process at once",
        until=_HOOK,
    ),
    _use(
        symbol="ray._private.worker.global_worker",
        reason="the only way from a process to its actor instance",
        until=_HOOK,
    ),
    _use(
        symbol="ray.serve._private.replica.ReplicaActor._replica_impl",
        reason="the replica behind the actor, whose state is read and whose shutdown is called",
        until=_HOOK,
    ),
    _use(
        symbol="ray.serve._private.replica.Replica._shutting_down",
        reason="`/ready` says whether a replica drains; Ray's `/-/healthz` knows it, user code does not",
        until=_HOOK,
    ),
    _use(
        symbol="ray.serve._private.replica.Replica.perform_graceful_shutdown",
        reason="SIGTERM runs the same shutdown as Ray Serve's own stop",
        until=_HOOK,
    ),
    _use(
        symbol="ray.serve._private.controller.ServeController.get_http_config",
        reason="a replica refuses to start without API keys where Serve binds off loopback",
        until="`serve.status()` or the replica context tells the HTTP options",
    ),
    _use(
        symbol="ray.serve._private.constants.SERVE_CONTROLLER_NAME",
        reason="name of the actor that knows the HTTP options",
        until="`serve.status()` or the replica context tells the HTTP options",
    ),
    _use(
        symbol="ray.data._internal.progress",
        reason="name of a logger, to silence its warning that progress bars are off",
        until="Ray Data stops warning about an option that was set on purpose",
    ),
    _use(
        symbol="ray.train.v2._internal.constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR",
        reason="an update on the laptop takes seconds, and the controller notices its end only at the next poll",
        until="`RunConfig` has the interval",
    ),
)
