"""Fixtures shared by all tiers. Engines and clusters are started once a session: each costs tens of seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local import ENVIRONMENT, free_port

os.environ.update(ENVIRONMENT)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent.parent))

CHECKPOINT = Path(__file__).parent.parent / "sdpo_ray" / "simulate" / "tiny_policy" / "checkpoint"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster of our own, without a dashboard. Gives its address."""
    import ray

    context = ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def serve_http(ray_cluster: str) -> Iterator[str]:
    """Ray Serve on a free port. Gives its URL."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
