"""`/health` and `/ready` of one replica."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.errors import ConfigError, SwapError
from sdpo_ray.headers import POLICY_VERSION, SWAP_ERROR
from serve.gateway.health import Health, without_paths
from serve.lifecycle.bind_check import require_keys
from tests.support.recorded_engine import MemoryLog, recorder_of


def asked(
    path: str, tmp_path: Path, error: Exception | None = None, *, draining: bool = False, **more: str
) -> httpx.Response:
    async def check() -> None:
        if error is not None:
            raise error

    app: Any = Health(
        check=check,
        served=lambda: {POLICY_VERSION: "3", **more},
        recorder=recorder_of(tmp_path, MemoryLog()),
        queue=lambda: {"requests": 2, "in_engine": 1},
        draining=lambda: draining,
    )

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://replica") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_a_replica_that_is_well_says_so_with_what_it_serves(tmp_path: Path) -> None:
    alive = asked("/health", tmp_path)
    assert (alive.status_code, alive.json(), alive.headers[POLICY_VERSION]) == (200, {"status": "alive"}, "3")
    ready = asked("/ready", tmp_path)
    assert ready.status_code == 200
    assert ready.json() == {
        "ready": True,
        "reason": None,
        "draining": False,
        "policy_version": 3,
        "swap_error": None,
        "journal": {"healthy": True, "bytes": 0},
        "queue": {"requests": 2, "in_engine": 1},
    }


def test_a_refused_release_is_shown_and_the_replica_stays_ready(tmp_path: Path) -> None:
    ready = asked("/ready", tmp_path, None, **{SWAP_ERROR: "v4: torn"})
    assert (ready.status_code, ready.json()["swap_error"]) == (200, "v4: torn")


def test_a_replica_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    assert asked("/health", tmp_path, draining=True).status_code == 200
    ready = asked("/ready", tmp_path, draining=True)
    assert (ready.status_code, ready.json()["reason"], ready.json()["draining"]) == (503, "draining", True)


class EngineDead(Exception):
    """As vLLM's own errors: with any text."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            SwapError("neither weights check out: /srv/.sdpo/candidates/v0004/model.safetensors"),
            "neither weights check out: model.safetensors",
        ),
        (EngineDead("the user said 4711"), "EngineDead"),
    ],
)
def test_a_broken_replica_shows_why_without_paths_or_user_text(tmp_path: Path, error: Exception, reason: str) -> None:
    broken = asked("/health", tmp_path, error)
    assert (broken.status_code, broken.json()) == (503, {"status": "broken", "reason": reason})
    ready = asked("/ready", tmp_path, error)
    assert (ready.status_code, ready.json()["reason"]) == (503, reason)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("'/a/b c' and 1/2", "'b c' and 1/2"),
        (
            "v3: [Errno 2] No such file: '/tmp/x-1/v.3/model.safetensors'",
            "v3: [Errno 2] No such file: 'model.safetensors'",
        ),
        ("log-probs differ", "log-probs differ"),
    ],
)
def test_paths_are_cut_down_to_their_last_name(text: str, plain: str) -> None:
    assert without_paths(text) == plain


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_on_loopback_no_key_is_required(tmp_path: Path, host: str) -> None:
    require_keys(host, tmp_path / "api_keys.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", None, ""])
def test_off_loopback_nothing_starts_without_a_key(tmp_path: Path, host: str | None) -> None:
    path = tmp_path / "api_keys.json"
    with pytest.raises(ConfigError, match=r"python jobs/keys\.py add --tenant NAME"):
        require_keys(host, path)
    _, keys = ApiKeys.load(path).add("acme")
    require_keys(host, path)
    keys.revoke(keys.keys[0].key_id)
    with pytest.raises(ConfigError):
        require_keys(host, path)
