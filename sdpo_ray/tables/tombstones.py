"""Tombstones of erased users: their events that are still in the event log never enter the tables.

A tombstone has salted digests of the user's pseudonyms, turns and conversations, so the file identifies no user to
readers without the keys and the user's name. Tombstones are kept forever: a log with its own retention may hold events
of the user for as long.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.io.watched_file import FileStamp, file_stamp
from sdpo_ray.records import Event, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """One erasure. Made by `Tombstones`; read by it and by `privacy`."""

    erasure_id: str
    upto_s: float
    """Unix time; events after it are not erased."""
    digests: tuple[str, ...]
    done: bool = False
    """False until the erasure is complete; until then it has to be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """Content of the file."""

    salt: str
    erasures: tuple[Tombstone, ...]


class Tombstones:
    """The tombstones of one run. Raises DataError for a file that it cannot read."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.erasures
        self._content = _File(salt="", erasures=())
        self._upto_s: dict[str, float] = {}
        self._stamp: FileStamp | None = None
        self.reload()

    def reload(self) -> Self:
        """Read what other processes added. Costs one `stat` when the file is unchanged. Raises DataError."""
        stamp = file_stamp(self._path)
        if stamp is not None and stamp != self._stamp:
            self._take(read_json(self._path, _File))
            self._stamp = stamp
        return self

    def add(
        self,
        users: Iterable[tuple[str, str]],
        *,
        upto_s: float,
        turns: Iterable[str] = (),
        conversations: Iterable[str] = (),
    ) -> Tombstone:
        """Add a tombstone for users, each (tenant, pseudonym), for turns by id, and for turns of conversations.

        `upto_s` is Unix time; conversations are digests, `records.PairingKeys.conversation`. Durable on return.
        """
        erasure = Tombstone(erasure_id=uuid.uuid4().hex, upto_s=upto_s, digests=())
        with self._changing():
            digests = self._digests(users, turns, conversations)
            erasure = replace(erasure, digests=digests)
            self._write((*self._content.erasures, erasure))
        return erasure

    def extend(self, erasure: Tombstone, *, turns: Iterable[str] = (), conversations: Iterable[str] = ()) -> Tombstone:
        """Add turns and conversations to a tombstone; returns the new one. Durable on return."""
        with self._changing():
            more = dict.fromkeys((*erasure.digests, *self._digests((), turns, conversations)))
            erasure = replace(erasure, digests=tuple(more))
            self._replace(erasure)
        return erasure

    def finish(self, erasures: Iterable[Tombstone]) -> None:
        """Mark these erasures as complete. Durable on return."""
        done = {each.erasure_id for each in erasures}
        with self._changing():
            self._write([replace(each, done=each.done or each.erasure_id in done) for each in self._content.erasures])

    def covers(self, event: Event) -> bool:
        """Whether the event's user, turn or conversation was erased at or after the time of the event.

        Reloads the file, so tombstones that other processes added before this call count.
        """
        self.reload()
        if not self._upto_s:
            return False
        at_s = event.started_at_s if isinstance(event, Turn) else event.given_at_s
        return any(at_s <= self._upto_s.get(digest, -1.0) for digest in self._of_event(event))

    def of(self, users: Iterable[tuple[str, str]] = (), turns: Iterable[str] = ()) -> tuple[Tombstone, ...]:
        """Tombstones of any of these users, each (tenant, pseudonym), or turn ids."""
        wanted = set(self._digests(users, turns, ()))
        return tuple(each for each in self._content.erasures if wanted & set(each.digests))

    def among(self, turns: Iterable[str], erasures: Iterable[Tombstone]) -> set[str]:
        """Those of the turn ids that one of the erasures covers by id."""
        named = {digest for each in erasures for digest in each.digests}
        return {turn_id for turn_id in turns if self._digest("turn", turn_id) in named} if named else set()

    @property
    def unfinished(self) -> tuple[Tombstone, ...]:
        """Tombstones whose erasure is not complete."""
        return tuple(each for each in self._content.erasures if not each.done)

    def _of_event(self, event: Event) -> Iterator[str]:
        if event.user:
            yield self._digest("user", event.tenant, event.user)
        yield self._digest("turn", event.turn_id)
        if isinstance(event, Turn) and event.keys.conversation:
            yield self._digest("conversation", event.keys.conversation)

    def _digests(
        self, users: Iterable[tuple[str, str]], turns: Iterable[str], conversations: Iterable[str]
    ) -> tuple[str, ...]:
        return (
            *(self._digest("user", tenant, user) for tenant, user in users),
            *(self._digest("turn", turn_id) for turn_id in turns),
            *(self._digest("conversation", key) for key in conversations),
        )

    def _digest(self, *fields: str) -> str:
        digest = hashlib.sha256(bytes.fromhex(self._content.salt))
        for field in fields:
            encoded = field.encode(errors="surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
        return digest.hexdigest()[:32]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file's lock, and read the file first, so that no other process changes it in the block."""
        with file_lock(self._path):
            self.reload()
            if not self._content.salt:
                self._content = _File(salt=os.urandom(16).hex(), erasures=())
            yield

    def _replace(self, erasure: Tombstone) -> None:
        known = self._content.erasures
        self._write(tuple(erasure if each.erasure_id == erasure.erasure_id else each for each in known))

    def _write(self, erasures: Sequence[Tombstone]) -> None:
        self._take(_File(salt=self._content.salt, erasures=tuple(erasures)))
        write_json(self._path, self._content)

    def _take(self, content: _File) -> None:
        self._content = content
        self._upto_s = {}
        for each in content.erasures:
            for digest in each.digests:
                self._upto_s[digest] = max(each.upto_s, self._upto_s.get(digest, each.upto_s))
