"""Fixtures shared by all tiers, and the marker `unit`.

Clusters and engines are started once a session, since each start takes tens of seconds. One vLLM engine answers users
and one evaluates candidates; tests swap weights into them instead of starting others.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo_ray.cluster.local_cluster import ENVIRONMENT, free_port
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION
from sdpo_ray.upstream.haproxy import own_haproxy
from tests.support.paths import CHECKPOINT
from tests.support.serving import Served, deployed

os.environ.update(ENVIRONMENT)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent.parent))

_UNIT_FOLDERS = ("unit", "contract")
_OTHER_TIERS = ("slow", "integration", "gpu")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark `unit` every test of tests/unit and tests/contract that no other tier claims.

    `-m unit` and `-m "not unit"` are then the whole suite, whatever the tests are marked.
    """
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in _UNIT_FOLDERS and not any(map(item.get_closest_marker, _OTHER_TIERS)):
            item.add_marker(pytest.mark.unit)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """The paths of an empty run, in a folder with a space in its name."""
    return Layout(tmp_path / "a run")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster for this session, without a dashboard and with HAProxy as in `make demo`. Yields its address."""
    import ray

    with tempfile.TemporaryDirectory(prefix="sdpo-ray-") as folder:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in own_haproxy(Path(folder)).items():
                environment.setenv(name, value)
            # Its processes inherit the environment now; another cluster of this session has a different one.
            context = ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20)
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture(scope="session")
def serve_http(ray_cluster: str) -> Iterator[str]:
    """Ray Serve on a free port. Yields its URL."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="session")
def served(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The users' application, serving the tiny policy."""
    root = tmp_path_factory.mktemp("served")
    overrides = [
        f"root={root}",
        f"policy.base={CHECKPOINT}",
        f"serve.port={serve_http.rpartition(':')[2]}",
        "capture.journal.segment_mib=1",
        "capture.journal.segment_s=2",
    ]
    with deployed("users", overrides, route="/"):
        yield Served(url=serve_http, layout=Layout(Path(root)), base=CHECKPOINT, overrides=tuple(overrides))


@pytest.fixture(scope="session")
def evaluator(served: Served) -> Iterator[str]:
    """The engine that evaluates candidates, beside the users' one. Yields its URL."""
    with deployed("evaluator", served.overrides, audience="evaluator"):
        yield f"{served.url}/evaluator"


@pytest.fixture
def back_to_base(served: Served) -> Iterator[None]:
    """Serve the base before the test and after it, whatever other tests released."""

    def restore() -> None:
        served.layout.release_pointer.write_bytes(served.layout.release(BASE_VERSION).read_bytes())
        served.wait_for("x-sdpo-policy-version", str(BASE_VERSION))

    restore()
    yield
    restore()
