"""Pseudonyms of users: keyed digests that only a holder of the keys can compute.

A pseudonym is HMAC-SHA256 (RFC 2104) of the request's `user` field. Keys can be rotated: existing rows keep their
pseudonym, and a search for a user covers all keys. The pairing key never changes, so that conversations continue
over a rotation.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sdpo_ray.io.files import read_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.watched_file import write_private


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudonymKey:
    """One key of pseudonyms. Made and read by `Pseudonyms`."""

    key_id: str
    """Prefix of the key's pseudonyms."""
    key: str
    """Hexadecimal."""
    made_at_s: float
    """Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """Content of the file."""

    pairing_key: str
    keys: tuple[PseudonymKey, ...]
    """Newest first."""


class Pseudonyms:
    """The keys of one run as of the last read; immutable. Made by `load` and `rotate`."""

    def __init__(self, path: Path, content: _Keys) -> None:
        self._path = path
        self._content = content
        self.pairing_key = bytes.fromhex(content.pairing_key)
        """Key of the digests in `records.PairingKeys` and of the ids of feedback."""

    def __repr__(self) -> str:
        return f"Pseudonyms({[key.key_id for key in self._content.keys]})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Newest first."""
        return tuple(key.key_id for key in self._content.keys)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the keys; create them if the file is missing. Raises DataError for a malformed file."""
        try:
            return cls(path, read_json(path, _Keys))
        except FileNotFoundError:
            pass
        with file_lock(path):
            if not path.exists():
                first = _new_key()
                write_private(path, _Keys(pairing_key=secrets.token_hex(32), keys=(first,)))
        return cls(path, read_json(path, _Keys))

    def of(self, user: str) -> str:
        """Pseudonym of `user` under the newest key, `<key id>.<32 hex digits>`; empty for an empty name."""
        return _pseudonym(self._content.keys[0], user) if user else ""

    def all_of(self, user: str) -> tuple[str, ...]:
        """Every pseudonym of `user`, newest key first: what erasure looks for. Empty for an empty name."""
        return tuple(_pseudonym(key, user) for key in self._content.keys) if user else ()

    def rotate(self) -> Self:
        """Add a new key before those in the file. Returns the keys that are now in the file."""
        with file_lock(self._path):
            stored = read_json(self._path, _Keys)
            write_private(self._path, _Keys(pairing_key=stored.pairing_key, keys=(_new_key(), *stored.keys)))
        return type(self).load(self._path)


def _pseudonym(key: PseudonymKey, user: str) -> str:
    # `surrogatepass`: JSON can carry a lone surrogate, which has no strict UTF-8 form, in a name.
    digest = hmac.new(bytes.fromhex(key.key), user.encode(errors="surrogatepass"), hashlib.sha256)
    return f"{key.key_id}.{digest.hexdigest()[:32]}"


def _new_key() -> PseudonymKey:
    return PseudonymKey(key_id=secrets.token_hex(4), key=secrets.token_hex(32), made_at_s=time.time())
