"""Keys of the API: who may call, and for which tenant."""

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from sdpo_ray.capture.apikeys import ApiKeys
from sdpo_ray.errors import ConfigError, DataError
from serve.auth import ExaminersEntrance, UsersEntrance

REPOSITORY = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"


def bearer(key: str, scheme: str = "Bearer") -> Headers:
    return Headers({"Authorization": f"{scheme} {key}"})


def test_a_key_is_kept_as_its_digest_alone_and_names_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    key, keys = ApiKeys.load(path).add("acme")
    other, keys = keys.add("umbrella")
    assert (keys.tenant_of(key), keys.tenant_of(other), keys.tenant_of(key + "x")) == ("acme", "umbrella", None)
    content = path.read_text()
    assert key not in content
    assert hashlib.sha256(key.encode()).hexdigest() in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) > 40


def test_a_run_without_the_file_asks_for_no_key_and_one_whose_last_key_was_revoked_does(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    entrance = UsersEntrance(path)
    assert entrance.tenant(CHAT, Headers()) == "default"
    key, keys = ApiKeys.load(path).add("acme")
    assert entrance.tenant(CHAT, Headers()) is None
    assert entrance.tenant(CHAT, bearer(key)) == entrance.tenant(CHAT, bearer(key, "bearer")) == "acme"
    assert keys.revoke(keys.keys[0].key_id).asked_for
    assert entrance.tenant(CHAT, bearer(key)) is None


def test_a_door_that_was_closed_stays_closed_when_the_file_goes_away_or_breaks(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    key, _ = ApiKeys.load(path).add("acme")
    entrance = UsersEntrance(path)
    for spoil in (lambda: path.write_text("["), path.unlink):
        spoil()
        assert entrance.tenant(CHAT, Headers()) is None
        assert entrance.tenant(CHAT, bearer(key)) == "acme"
    path.write_text("[")
    with pytest.raises(DataError):
        UsersEntrance(path)


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer"}, {"authorization": "Basic k"}, {"authorization": "k"}]
)
def test_whatever_is_no_bearer_key_does_not_enter(tmp_path: Path, headers: dict[str, str]) -> None:
    ApiKeys.load(tmp_path / "api_keys.json").add("acme")
    entrance = UsersEntrance(tmp_path / "api_keys.json")
    assert entrance.tenant(CHAT, Headers(headers)) is None
    assert entrance.tenant("/v1/models", Headers(headers)) is None
    assert entrance.tenant("/health", Headers(headers)) == entrance.tenant("/metrics", Headers(headers)) == "default"


def test_the_examiner_has_one_key_for_everything_but_the_health_check() -> None:
    entrance = ExaminersEntrance(b"k" * 64)
    assert entrance.tenant("/health", Headers()) == "default"
    assert entrance.tenant("/metrics", Headers()) is None
    assert entrance.tenant(CHAT, bearer("k" * 64)) == "default"
    assert entrance.tenant(CHAT, bearer("k" * 63)) is entrance.tenant(CHAT, bearer("\xff")) is None


@pytest.mark.parametrize("tenant", ["", "a b", "-x", "é", "a" * 65, "a\n"])
def test_a_tenant_has_a_plain_name(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a tenant"):
        ApiKeys.load(tmp_path / "api_keys.json").add(tenant)
    assert list(tmp_path.iterdir()) == []


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/keys.py", *arguments, "--set", f"root={tmp_path}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command_adds_lists_and_revokes(tmp_path: Path) -> None:
    assert run(tmp_path, "list").stdout == "no keys: everybody may call, as tenant default\n"
    added = run(tmp_path, "add", "--tenant", "acme")
    keys = ApiKeys.load(tmp_path / "api_keys.json")
    assert keys.tenant_of(added.stdout.strip()) == "acme"
    assert "every request needs a key from now on" in added.stderr
    assert "every request" not in run(tmp_path, "add", "--tenant", "umbrella").stderr
    listed = run(tmp_path, "list").stdout
    assert [line.split()[1] for line in listed.splitlines()] == ["acme", "umbrella"]
    assert added.stdout.strip() not in listed
    key_id = keys.keys[0].key_id
    assert run(tmp_path, "revoke", key_id).stdout == f"key {key_id} is revoked; 1 left\n"
    again = run(tmp_path, "revoke", key_id)
    assert again.returncode == 2
    assert f"there is no key {key_id}" in again.stderr
