"""Connect to the running Ray cluster, or start one for the duration of a block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError


@contextmanager
def ray_session(run: Run) -> Iterator[None]:
    """Be connected to the running cluster, or to one on this machine that ends with the block.

    Raises ConfigError if RAY_ADDRESS is set and no cluster answers there.
    """
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
        # Each worker requests one logical CPU, and all of them run at once.
        num_cpus = max(os.cpu_count() or 1, run.distill.workers.num_workers + 1)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
