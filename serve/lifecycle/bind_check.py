"""No key, no start: whatever can be reached from elsewhere has keys of the API."""

from pathlib import Path

import ray

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import ServeConfig
from sdpo_ray.errors import ConfigError


def require_keys(host: str | None, api_keys: Path) -> None:
    """Raise ConfigError where `host`, None for all interfaces, is off loopback and the run has no key of the API."""
    if ServeConfig(host=host or "0.0.0.0").on_loopback or ApiKeys.load(api_keys).keys:
        return
    raise ConfigError(
        f"serving on {host or 'all interfaces'} without a key of the API would let anybody in: make one with "
        "`python jobs/keys.py add --tenant NAME` (and this run's --run and --set), or serve on 127.0.0.1"
    )


async def bound_host() -> str | None:
    """Where Ray Serve's HTTP servers of this cluster listen, HAProxy's and the replicas' own; None for everywhere.

    It may be another than the run file's: `http_options` are the cluster's; behind HAProxy Ray's default is 0.0.0.0.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    options = await ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE).get_http_config.remote()
    host: str | None = options.host
    return host
