"""Who may call, and for which tenant."""

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sdpo_ray.capture.apikeys import DEFAULT_TENANT, ApiKeys
from sdpo_ray.capture.private import Followed


class Entrance(Protocol):
    """Decides about one request."""

    def tenant(self, path: str, headers: Mapping[str, str]) -> str | None:
        """The tenant that calls; None for a caller who may not enter."""


class UsersEntrance:
    """Asks for a key of the API where the run has any. Keys that are added or revoked count at once.

    `/health` and `/metrics` are for those who run the service, who are no tenant.
    """

    def __init__(self, api_keys: Path) -> None:
        self._keys = Followed(api_keys, ApiKeys.load)

    def tenant(self, path: str, headers: Mapping[str, str]) -> str | None:
        keys = self._keys.now()
        if not keys.asked_for or path in ("/health", "/metrics"):
            return DEFAULT_TENANT
        return keys.tenant_of(_bearer(headers))


class ExaminersEntrance:
    """Asks for the examination's key everywhere but at `/health`."""

    def __init__(self, exam_key: bytes) -> None:
        self._key = exam_key

    def tenant(self, path: str, headers: Mapping[str, str]) -> str | None:
        known = path == "/health" or hmac.compare_digest(_bearer(headers).encode(), self._key)
        return DEFAULT_TENANT if known else None


def private_key(path: Path) -> bytes:
    """The secret in `path`, made on first use and readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode())
    return path.read_bytes()


def _bearer(headers: Mapping[str, str]) -> str:
    """The bearer token (RFC 6750); empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
