"""Authenticates requests: by API keys of users, by the evaluation's key, or by the canary's key."""

import contextlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdpo_ray.capture.api_keys import DEFAULT_TENANT, ApiKeys
from sdpo_ray.config import LimitsConfig
from sdpo_ray.headers import TENANT
from sdpo_ray.io.watched_file import WatchedFile

UNLIMITED = LimitsConfig()
OPEN = ("/health", "/ready", "/metrics")
"""Paths of the operator, which belong to no tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated caller. Made by an `Authenticator`; read by `serve.gateway.middleware`."""

    tenant: str = DEFAULT_TENANT
    key_id: str = ""
    """Empty where no key is required."""
    limits: LimitsConfig = UNLIMITED

    @property
    def limited(self) -> bool:
        return self.limits != UNLIMITED


class Authenticator(Protocol):
    """Authenticates one request."""

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        """Return the caller; None for one that is not allowed."""


class UserAuthenticator:
    """Requires an API key where the run has any. Keys that are added or revoked take effect at once.

    A run without keys serves on loopback alone (`serve.lifecycle.bind_check`), where callers cannot be told apart:
    `limits` then apply to all of them together.
    """

    def __init__(self, api_keys: Path, limits: LimitsConfig = UNLIMITED) -> None:
        self._keys = WatchedFile(api_keys, ApiKeys.load)
        self._limits = limits

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        if path in OPEN:
            return Caller()
        keys = self._keys.now()
        if not keys.required:
            return Caller(limits=self._limits)
        key = keys.found(_bearer(headers))
        if key is None:
            return None
        return Caller(tenant=key.tenant, key_id=key.key_id, limits=key.limits(self._limits))


class EvaluatorAuthenticator:
    """Requires the evaluation's key everywhere but for health probes."""

    def __init__(self, eval_key: bytes) -> None:
        self._key = eval_key

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        known = path in OPEN[:2] or hmac.compare_digest(_bearer(headers).encode(), self._key)
        return Caller() if known else None


class CanaryAuthenticator:
    """Requires the canary's key, which the users' replicas have, and takes the tenant from their header.

    They have authenticated the caller, and count its limits.
    """

    def __init__(self, canary_key: bytes) -> None:
        self._key = canary_key

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        if path in OPEN[:2]:
            return Caller()
        known = hmac.compare_digest(_bearer(headers).encode(), self._key)
        return Caller(tenant=headers.get(TENANT, DEFAULT_TENANT)) if known else None


def private_key(path: Path) -> bytes:
    """Return the secret in `path`, which the first of several processes makes; readable by its owner alone."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        # A link appears whole or not at all: an empty key, which any caller can guess, is never read.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
    return path.read_bytes()


def _bearer(headers: Mapping[str, str]) -> str:
    """Return the bearer token (RFC 6750); empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
