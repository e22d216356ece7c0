"""Simulated users of a replica, and notes of which answer each of their messages reacts to.

A user's messages follow from a number, so that users continue where they were when their replica is killed. A request
without a reply is sent again unchanged.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from sdpo_ray.records import Message, Role

FOLLOW_UPS = 2
_COUNTRIES = ("France", "Peru", "Kenya")
_LETTERS = str.maketrans("0123456789", "ghijklmnop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line of a replica's notes: what it is about to record, or the receipt that it gave."""

    what: Literal["ask", "receipt", "no_receipt", "comment", "comment_receipt"]
    turn_id: str
    person: int = 0
    step: int = 0
    follows: str = ""
    """The turn whose answer this message reacts to."""
    answer: str = ""


class Notes:
    """Notes of one replica in order, across restarts."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # Ends a line that a killed writer left incomplete.
        os.write(self._fd, b"\n")

    def write(self, note: Note, *, durable: bool = False) -> None:
        os.write(self._fd, msgspec.json.encode(note) + b"\n")
        if durable:
            os.fdatasync(self._fd)


def read_notes(path: Path) -> list[Note]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Note) for line in lines if line.endswith(b"}")]


@dataclass(slots=True)
class Person:
    """One conversation of a user. Of three, one sends a name and one a conversation id; one of nine is anonymous."""

    replica: str
    number: int
    read: list[tuple[str, str]] = field(default_factory=list)
    """Turn ids and answers so far."""

    @property
    def is_stranger(self) -> bool:
        """Whether the user is anonymous, and sends and receives the same texts as other strangers."""
        return self.number % 9 == 8

    @property
    def user(self) -> str:
        return f"{self.replica}-{self.number}" if self.number % 3 == 0 else ""

    @property
    def conversation_id(self) -> str:
        return f"{self.replica}-{self.number}" if self.number % 3 == 1 else ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The next request: the conversation so far and the next message."""
        said = []
        for step in range(len(self.read) + 1):
            said.append(Message(role=Role.USER, content=self._words(step)))
            if step < len(self.read):
                said.append(Message(role=Role.ASSISTANT, content=self.read[step][1]))
        return tuple(said)

    def answer(self, turn_id: str) -> str:
        """An answer of this user alone, in letters, so that no redaction takes it for an account number."""
        return "It is." if self.is_stranger else f"One of {turn_id.translate(_LETTERS)}."

    def _words(self, step: int) -> str:
        if step:
            return f"Shorter, I said {step} times."
        named = self.number % 3 < 2 or self.is_stranger
        whose = "" if named else f", asks {self.replica.translate(_LETTERS)} {self.number}"
        mail = f" Write to person{self.number}@example.org." if self.number % 5 == 0 else ""
        return f"What is the capital of {_COUNTRIES[self.number % 3]}{whose}?{mail}"


def people(replica: str, notes: list[Note], *, seats: int, seat: int) -> Iterator[Person]:
    """The unfinished users of one client, one after the other, without end."""
    read: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)
    asked = {note.turn_id: note for note in notes if note.what == "ask"}
    missed: set[int] = set()
    for note in notes:
        if note.what in ("receipt", "no_receipt"):
            ask = asked[note.turn_id]
            read[ask.person][ask.step] = (ask.turn_id, ask.answer)
            if note.what == "no_receipt":
                missed.add(ask.person)
    number = seat
    while True:
        done = [answer for _, answer in sorted(read[number].items())]
        person = Person(replica=replica, number=number, read=done)
        # A stranger's answer without a receipt cannot be told from another stranger's that is stored.
        if len(done) <= FOLLOW_UPS and not (person.is_stranger and number in missed):
            yield person
        number += seats
