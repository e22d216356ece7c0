"""Connected to the Ray cluster that is there, else to one of our own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError


@contextmanager
def ray_session(run: Run) -> Iterator[None]:
    """Connected to the cluster that is there, else to one on this machine for as long as the block runs."""
    import ray

    from sdpo_ray.cluster.local_cluster import ENVIRONMENT

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError as error:
        if "RAY_ADDRESS" in os.environ:
            raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {error}") from None
        typer.echo("no Ray cluster is running: starting one on this machine until the update is done", err=True)
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        # Each worker asks for one logical CPU, and there must be one for all of them at once.
        num_cpus = max(os.cpu_count() or 1, run.distill.workers.num_workers + 1)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
