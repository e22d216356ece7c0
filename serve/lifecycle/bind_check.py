"""Refuses to serve on addresses off loopback while the run has no API key."""

from pathlib import Path

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import ServeConfig
from sdpo_ray.errors import ConfigError


def require_keys(host: str | None, api_keys: Path) -> None:
    """Raise ConfigError where `host` (None: all interfaces) is off loopback and the file `api_keys` holds no key."""
    if ServeConfig(host=host or "0.0.0.0").on_loopback or ApiKeys.load(api_keys).keys:
        return
    raise ConfigError(
        f"serving on {host or 'all interfaces'} without an API key would let anybody in: make one with "
        "`python jobs/keys.py add --tenant NAME` (and this run's --run and --set), or serve on 127.0.0.1"
    )
