"""API keys: which requests they allow, and for which tenant."""

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import LimitsConfig
from sdpo_ray.errors import ConfigError, DataError
from serve.gateway.auth import Authenticator, EvaluatorAuthenticator, UserAuthenticator
from tests.support.paths import REPOSITORY

CHAT = "/v1/chat/completions"


def tenant(authenticator: Authenticator, path: str, headers: Headers) -> str | None:
    """Tenant of a request with these headers; None if the request is refused."""
    caller = authenticator.caller(path, headers)
    return caller and caller.tenant


def tenant_of(keys: ApiKeys, key: str) -> str | None:
    found = keys.found(key)
    return found and found.tenant


def bearer(key: str, scheme: str = "Bearer") -> Headers:
    return Headers({"Authorization": f"{scheme} {key}"})


def test_only_the_digest_of_a_key_is_stored_and_it_names_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    key, keys = ApiKeys.load(path).add("acme")
    other, keys = keys.add("umbrella")
    assert (tenant_of(keys, key), tenant_of(keys, other), tenant_of(keys, key + "x")) == ("acme", "umbrella", None)
    content = path.read_text()
    assert key not in content
    assert hashlib.sha256(key.encode()).hexdigest() in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) > 40


def test_a_run_without_the_file_requires_no_key_and_one_whose_last_key_was_revoked_does(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    authenticator = UserAuthenticator(path)
    assert tenant(authenticator, CHAT, Headers()) == "default"
    key, keys = ApiKeys.load(path).add("acme")
    assert tenant(authenticator, CHAT, Headers()) is None
    assert tenant(authenticator, CHAT, bearer(key)) == tenant(authenticator, CHAT, bearer(key, "bearer")) == "acme"
    assert keys.revoke(keys.keys[0].key_id).required
    assert tenant(authenticator, CHAT, bearer(key)) is None


def test_keys_stay_required_when_the_file_is_deleted_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    key, _ = ApiKeys.load(path).add("acme")
    authenticator = UserAuthenticator(path)
    for spoil in (lambda: path.write_text("["), path.unlink):
        spoil()
        assert tenant(authenticator, CHAT, Headers()) is None
        assert tenant(authenticator, CHAT, bearer(key)) == "acme"
    path.write_text("[")
    with pytest.raises(DataError):
        UserAuthenticator(path)


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer"}, {"authorization": "Basic k"}, {"authorization": "k"}]
)
def test_headers_without_a_valid_bearer_key_are_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    ApiKeys.load(tmp_path / "api_keys.json").add("acme")
    authenticator = UserAuthenticator(tmp_path / "api_keys.json")
    assert tenant(authenticator, CHAT, Headers(headers)) is None
    assert tenant(authenticator, "/v1/models", Headers(headers)) is None
    assert (
        tenant(authenticator, "/health", Headers(headers))
        == tenant(authenticator, "/metrics", Headers(headers))
        == "default"
    )


def test_the_evaluator_has_one_key_for_everything_but_the_health_check() -> None:
    authenticator = EvaluatorAuthenticator(b"k" * 64)
    assert tenant(authenticator, "/health", Headers()) == "default"
    assert tenant(authenticator, "/metrics", Headers()) is None
    assert tenant(authenticator, CHAT, bearer("k" * 64)) == "default"
    assert tenant(authenticator, CHAT, bearer("k" * 63)) is tenant(authenticator, CHAT, bearer("\xff")) is None


@pytest.mark.parametrize("name", ["", "a b", "-x", "é", "a" * 65, "a\n"])
def test_a_tenant_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a tenant"):
        ApiKeys.load(tmp_path / "api_keys.json").add(name)
    assert list(tmp_path.iterdir()) == []


def test_limits_of_a_key_override_those_of_the_run_and_are_optional_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    ApiKeys.load(path).add("acme", requests_per_minute=5, concurrent=0)
    of_run = LimitsConfig(requests_per_minute=60, tokens_per_minute=1000, concurrent=4)
    expected = LimitsConfig(requests_per_minute=5, tokens_per_minute=1000, concurrent=0)
    assert ApiKeys.load(path).keys[0].limits(of_run) == expected
    without_limits = [
        {"key_id": "k", "tenant": "acme", "sha256": hashlib.sha256(b"plain").hexdigest(), "made_at_s": 1.0}
    ]
    path.write_text(json.dumps(without_limits))
    found = ApiKeys.load(path).found("plain")
    assert found is not None
    assert found.limits(of_run) == of_run


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/keys.py", *arguments, "--set", f"root={tmp_path}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command_adds_lists_and_revokes(tmp_path: Path) -> None:
    assert run(tmp_path, "list").stdout == "no keys: requests need none, and belong to the tenant default\n"
    added = run(tmp_path, "add", "--tenant", "acme")
    keys = ApiKeys.load(tmp_path / "api_keys.json")
    assert tenant_of(keys, added.stdout.strip()) == "acme"
    assert "every request needs a key from now on" in added.stderr
    assert "every request" not in run(tmp_path, "add", "--tenant", "umbrella").stderr
    listed = run(tmp_path, "list").stdout
    assert [line.split()[1] for line in listed.splitlines()] == ["acme", "umbrella"]
    assert added.stdout.strip() not in listed
    key_id = keys.keys[0].key_id
    assert run(tmp_path, "revoke", key_id).stdout == f"key {key_id} is revoked; 1 left\n"
    limited = run(tmp_path, "add", "--tenant", "small", "--requests-per-minute", "5", "--concurrent", "0")
    assert limited.returncode == 0
    assert run(tmp_path, "list").stdout.splitlines()[-1].endswith("  5 requests/min  any at once")
    again = run(tmp_path, "revoke", key_id)
    assert again.returncode == 2
    assert f"there is no key {key_id}" in again.stderr
