"""Deploy the applications of a run through Ray's REST API, as `serve deploy` does."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError

SERVE = Path(__file__).parents[2] / "serve"
TIMEOUT_S = 240
_SCALE = ("serve.num_replicas", "serve.autoscale.")


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

    With `wait`, returns when all of them run. Raises ConfigError with Ray Serve's message if it refuses or fails.
    """
    config = serve_config(run, run_file, overrides, only=only)
    url = f"{dashboard}/api/serve/applications/"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(config).encode(), headers, method="PUT")
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        raise ConfigError(f"Ray Serve refused it: {error.read().decode(errors='replace')[-1500:]}") from None
    except urllib.error.URLError as error:
        raise ConfigError(f"no Ray cluster answers at {dashboard}: `ray start --head` starts one ({error})") from None
    if wait:
        _wait(url, num_applications=len(config["applications"]))


def serve_config(run: Run, run_file: Path, overrides: list[str], *, only: Collection[str] = ()) -> dict[str, Any]:
    """Content of a Serve config file: serve/config.yaml with this run's file, address and overrides.

    A run with a canary uses serve/canary.yaml, which has one application more. The number of replicas is not among the
    arguments, because Ray Serve restarts all replicas of an application when an argument changes.
    """
    file = SERVE / ("config.yaml" if run.promote.canary.mode == "off" else "canary.yaml")
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    config["http_options"] |= {"host": run.serve.host, "port": run.serve.port}
    config["applications"] = [each for each in config["applications"] if not only or each["name"] in only]
    arguments = [each for each in overrides if not each.startswith(_SCALE)]
    for application in config["applications"]:
        application["args"] |= {"run_file": str(run_file), "overrides": list(arguments)}
        if application["args"]["audience"] == "users":
            application["deployments"] = [{"name": "policy", **run.serve.replicas}]
    return config


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
    details = "; ".join(f"{name}: {a['status']} {a['message'][-1500:]}" for name, a in applications.items())
    raise ConfigError(f"Ray Serve could not deploy: {details}")
