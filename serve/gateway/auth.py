"""Who may call, for which tenant, and how much of it."""

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
"""For those who run the service, who are no tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who may enter. Made by an `Authenticator`; read by `serve.gateway.middleware` and `serve.gateway.rate_limit`."""

    tenant: str = DEFAULT_TENANT
    key_id: str = ""
    """Empty where no key was asked for."""
    limits: LimitsConfig = UNLIMITED

    @property
    def limited(self) -> bool:
        return self.limits != UNLIMITED


class Authenticator(Protocol):
    """Decides about one request."""

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        """Who calls; None for a caller who may not enter."""


class UserAuthenticator:
    """Asks for a key of the API where the run has any. Keys that are added or revoked count at once.

    A run without keys holds to loopback (`serve.lifecycle.bind_check`), where nobody can be told from anybody: `limits` then
    apply to all of them together.
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
    """Asks for the evaluation's key everywhere but where the replica tells how it is."""

    def __init__(self, eval_key: bytes) -> None:
        self._key = eval_key

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        known = path in OPEN[:2] or hmac.compare_digest(_bearer(headers).encode(), self._key)
        return Caller() if known else None


class CanaryAuthenticator:
    """Asks for the trial's key, which the users' replicas have: whoever shows it says whose chat it is.

    They have let the caller in, within limits that are counted there.
    """

    def __init__(self, canary_key: bytes) -> None:
        self._key = canary_key

    def caller(self, path: str, headers: Mapping[str, str]) -> Caller | None:
        if path in OPEN[:2]:
            return Caller()
        known = hmac.compare_digest(_bearer(headers).encode(), self._key)
        return Caller(tenant=headers.get(TENANT, DEFAULT_TENANT)) if known else None


def private_key(path: Path) -> bytes:
    """The secret in `path`, made on first use and readable by its owner alone. Several may be the first."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        # A link appears whole or not at all: nobody may read an empty key, which any caller knows.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
    return path.read_bytes()


def _bearer(headers: Mapping[str, str]) -> str:
    """The bearer token (RFC 6750); empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
