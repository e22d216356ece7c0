"""Which tenant calls: keys of the API, of which only digests are kept.

A key is 256 random bits, so plain SHA-256 is as good as a slow hash: there is no dictionary to try.
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
"""Everybody's, where a run has no keys of the API."""
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key. Made by `jobs.keys`; read by `serve.gateway.auth`."""

    key_id: str
    tenant: str
    sha256: str
    made_at_s: float
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    """These three are the key's own limits; None where the run's hold."""

    def limits(self, default: LimitsConfig) -> LimitsConfig:
        """What this key may use, in a run whose `[serve.limits]` is `default`."""
        names = ("requests_per_minute", "tokens_per_minute", "concurrent")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return default.model_copy(update=own)


class ApiKeys:
    """The keys of one run, as they were when they were read. Made by `load`, `add` and `revoke`."""

    def __init__(self, path: Path, keys: tuple[ApiKey, ...] | None) -> None:
        self._path = path
        self._by_digest = {key.sha256: key for key in keys or ()}
        self.keys = keys or ()
        self.asked_for = keys is not None
        """Whether a request needs a key at all: a run without the file asks for none, one with an empty file does."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the keys, if there is such a file. Raises DataError for a file that is none of ours."""
        try:
            return cls(path, read_json(path, tuple[ApiKey, ...]))
        except FileNotFoundError:
            return cls(path, None)

    def found(self, key: str) -> ApiKey | None:
        """What is kept of `key`; None for a key that nobody has."""
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
        """A new key for `tenant`, in words that are kept nowhere, and what is in the file now. Raises ConfigError.

        Limits as in `ApiKey`: 0 is any amount, None what the run says.
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
        """Forget one key. Raises ConfigError when there is none of this id."""
        with file_lock(self._path):
            there = type(self).load(self._path).keys
            if all(key.key_id != key_id for key in there):
                raise ConfigError(f"there is no key {key_id}; known: {', '.join(k.key_id for k in there) or 'none'}")
            write_private(self._path, tuple(key for key in there if key.key_id != key_id))
        return type(self).load(self._path)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
