"""API keys of tenants. Only their digests are stored.

A key is 256 random bits, so SHA-256 is as good as a slow password hash: no dictionary attack is possible.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sdpo_ray.config import LimitsConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.watched_file import write_private

DEFAULT_TENANT = "default"
"""Tenant of all requests in a run without API keys."""
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The stored part of a key. Made by `ApiKeys.add`; read by `serve.gateway.auth`."""

    key_id: str
    tenant: str
    sha256: str
    made_at_s: float
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    """These three are limits of this key; None means the limit of the run, 0 no limit."""

    def limits(self, default: LimitsConfig) -> LimitsConfig:
        """Limits of this key in a run whose `[serve.limits]` is `default`."""
        names = ("requests_per_minute", "tokens_per_minute", "concurrent")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return default.model_copy(update=own)


class ApiKeys:
    """The keys of one run as of the last read; immutable. Made by `load`, `add` and `revoke`."""

    def __init__(self, path: Path, keys: tuple[ApiKey, ...] | None) -> None:
        self._path = path
        self._by_digest = {key.sha256: key for key in keys or ()}
        self.keys = keys or ()
        self.required = keys is not None
        """Whether requests need a key: not in a run without the file, but in one with an empty file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the keys; none are required when the file is missing. Raises DataError for a malformed file."""
        try:
            return cls(path, read_json(path, tuple[ApiKey, ...]))
        except FileNotFoundError:
            return cls(path, None)

    def found(self, key: str) -> ApiKey | None:
        """The stored part of `key`; None for an unknown key."""
        digest = _digest(key)
        found = self._by_digest.get(digest)
        return found if found is not None and hmac.compare_digest(found.sha256, digest) else None

    def add(
        self,
        tenant: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> tuple[str, Self]:
        """Create a key for `tenant`. Returns the key, which is stored nowhere, and the keys that are now in the file.

        Limits are as in `ApiKey`. Raises ConfigError for an invalid name of a tenant.
        """
        if not _TENANT.fullmatch(tenant):
            raise ConfigError(f"{tenant!r} cannot name a tenant: letters, digits, '.', '_' and '-', at most 64")
        key = f"sdpo-{secrets.token_urlsafe(32)}"
        made = ApiKey(
            key_id=secrets.token_hex(4),
            tenant=tenant,
            sha256=_digest(key),
            made_at_s=time.time(),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent=concurrent,
        )
        with file_lock(self._path):
            write_private(self._path, (*type(self).load(self._path).keys, made))
        return key, type(self).load(self._path)

    def revoke(self, key_id: str) -> Self:
        """Delete one key. Returns the keys that are now in the file. Raises ConfigError for an unknown id."""
        with file_lock(self._path):
            keys = type(self).load(self._path).keys
            if all(key.key_id != key_id for key in keys):
                raise ConfigError(f"there is no key {key_id}; known: {', '.join(k.key_id for k in keys) or 'none'}")
            write_private(self._path, tuple(key for key in keys if key.key_id != key_id))
        return type(self).load(self._path)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
