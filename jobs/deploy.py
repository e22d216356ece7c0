"""Deploy serve/config.yaml for one run: declaratively, through Ray's REST API, as `serve deploy` does."""

import json
import time
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError

CONFIG = Path(__file__).parent.parent / "serve" / "config.yaml"
TIMEOUT_S = 240


def deploy(
    dashboard: str,
    run: Run,
    run_file: Path,
    overrides: list[str],
    *,
    only: Collection[str] = (),
    wait: bool = True,
) -> None:
    """Deploy the applications (all, or those named in `only`) with this run's file, port and overrides.

    Waits until all of them run. Raises ConfigError with Ray Serve's words when they do not.
    """
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"] |= {"host": run.serve.host, "port": run.serve.port}
    config["applications"] = [each for each in config["applications"] if not only or each["name"] in only]
    for application in config["applications"]:
        application["args"] |= {"run_file": str(run_file), "overrides": overrides}
    url = f"{dashboard}/api/serve/applications/"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(config).encode(), headers, method="PUT")
    urllib.request.urlopen(request, timeout=60).close()
    if wait:
        _wait(url, num_applications=len(config["applications"]))


def _wait(url: str, num_applications: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    applications: dict[str, Any] = {}
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=30) as reply:
            applications = json.load(reply)["applications"]
        states = [application["status"] for application in applications.values()]
        if states == ["RUNNING"] * num_applications:
            return
        if "DEPLOY_FAILED" in states:
            break
        time.sleep(0.3)
    words = "; ".join(f"{name}: {a['status']} {a['message'][-1500:]}" for name, a in applications.items())
    raise ConfigError(f"Ray Serve could not deploy: {words}")
