"""Who was erased, and until when: what they left in the event log never enters the tables.

An erasure is known by salted digests of the user's pseudonyms, turns and conversations, so the file that remembers it
names nobody; who holds the keys and the name can ask whether it is there. It is kept for good: a log with a retention
of its own may hold the user's turns for as long as that.
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
    """One request to be forgotten. Made by `Tombstones`; read by it and `jobs.lineage`."""

    erasure_id: str
    upto_s: float
    """Unix time; what was asked later is said anew."""
    digests: tuple[str, ...]
    done: bool = False
    """False until everything was removed: it is to be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    salt: str
    erasures: tuple[Tombstone, ...]


class Tombstones:
    """The erasures of one run."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.erasures
        self._content = _File(salt="", erasures=())
        self._upto_s: dict[str, float] = {}
        self._stamp: FileStamp | None = None
        self.reload()

    def reload(self) -> Self:
        """Read again what other processes added, at the price of one `stat` where they added nothing."""
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
        """Forget these users, each a tenant and a pseudonym, these turns, and the turns of these conversations.

        Conversations are digests of `records.PairingKeys`. Durable when it returns.
        """
        erasure = Tombstone(erasure_id=uuid.uuid4().hex, upto_s=upto_s, digests=())
        with self._changing():
            digests = self._digests(users, turns, conversations)
            erasure = replace(erasure, digests=digests)
            self._write((*self._content.erasures, erasure))
        return erasure

    def extend(self, erasure: Tombstone, *, turns: Iterable[str] = (), conversations: Iterable[str] = ()) -> Tombstone:
        """Forget these, too."""
        with self._changing():
            more = dict.fromkeys((*erasure.digests, *self._digests((), turns, conversations)))
            erasure = replace(erasure, digests=tuple(more))
            self._replace(erasure)
        return erasure

    def finish(self, erasures: Iterable[Tombstone]) -> None:
        """Everything of these erasures was removed."""
        done = {each.erasure_id for each in erasures}
        with self._changing():
            self._write([replace(each, done=each.done or each.erasure_id in done) for each in self._content.erasures])

    def covers(self, event: Event) -> bool:
        """Whether an event is of somebody or something that was erased after it was asked or given.

        As of now: an erasure that another process remembered before this event was read counts for it.
        """
        self.reload()
        if not self._upto_s:
            return False
        at_s = event.started_at_s if isinstance(event, Turn) else event.given_at_s
        return any(at_s <= self._upto_s.get(digest, -1.0) for digest in self._of_event(event))

    def of(self, users: Iterable[tuple[str, str]] = (), turns: Iterable[str] = ()) -> tuple[Tombstone, ...]:
        """The erasures of any of these users and turns."""
        wanted = set(self._digests(users, turns, ()))
        return tuple(each for each in self._content.erasures if wanted & set(each.digests))

    def among(self, turns: Iterable[str], erasures: Iterable[Tombstone]) -> set[str]:
        """Those of these turns that one of the erasures names."""
        named = {digest for each in erasures for digest in each.digests}
        return {turn_id for turn_id in turns if self._digest("turn", turn_id) in named} if named else set()

    @property
    def unfinished(self) -> tuple[Tombstone, ...]:
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
        """While it lasts, no other process changes the file, which is read first."""
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
