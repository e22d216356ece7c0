"""Authentication of the canary's callers."""

from pathlib import Path

from serve.gateway.auth import CanaryAuthenticator, private_key


def test_the_canary_trusts_the_tenant_header_only_with_its_key(tmp_path: Path):
    key = private_key(tmp_path / "canary.key")
    assert private_key(tmp_path / "canary.key") == key
    assert (tmp_path / "canary.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["canary.key"]
    authenticator = CanaryAuthenticator(key)
    chat = "/v1/chat/completions"
    for authorization in ("", "Bearer", "Bearer ", f"Bearer {key.decode()}x", f"Basic {key.decode()}"):
        assert authenticator.caller(chat, {"authorization": authorization, "x-sdpo-tenant": "acme"}) is None
    right = {"authorization": f"Bearer {key.decode()}"}
    caller = authenticator.caller(chat, {**right, "x-sdpo-tenant": "acme"})
    assert caller is not None
    assert (caller.tenant, caller.limited) == ("acme", False)
    assert (authenticator.caller(chat, right) or caller).tenant == "default"
    assert authenticator.caller("/health", {}) is not None
