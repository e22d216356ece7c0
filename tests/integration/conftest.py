"""One vLLM engine a session, behind Ray Serve; tests swap weights into it instead of starting another."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo_ray.storage import Layout
from tests.conftest import CHECKPOINT
from tests.serving import Served


@pytest.fixture(scope="session")
def served(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The users' application, serving the tiny policy."""
    from ray import serve

    from jobs.commandline import LAPTOP
    from serve.app import Arguments, build

    root = tmp_path_factory.mktemp("served")
    overrides = [f"root={root}", f"policy.base={CHECKPOINT}", "capture.segment_mib=1"]
    serve.run(build(Arguments(run_file=str(LAPTOP), overrides=overrides)), name="users", route_prefix="/")
    yield Served(url=serve_http, layout=Layout(Path(root)), base=CHECKPOINT)
    serve.delete("users")


@pytest.fixture
def back_to_base(served: Served) -> Iterator[None]:
    """Serve version 0 again after the test."""
    first = served.layout.release_pointer.read_bytes()
    yield
    time.sleep(0.01)
    served.layout.release_pointer.write_bytes(first)
    served.wait_for("x-sdpo-policy-version", "0")
