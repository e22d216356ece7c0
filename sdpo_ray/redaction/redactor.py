"""The redactor: replace the entities that recognisers find in a text."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from sdpo_ray.errors import ConfigError
from sdpo_ray.redaction.cards_ibans import cards, ibans
from sdpo_ray.redaction.credentials import secrets
from sdpo_ray.redaction.emails_ips import emails, ips
from sdpo_ray.redaction.phones import PhoneRecognizer
from sdpo_ray.redaction.presidio import Presidio

Recogniser = Callable[[str], Iterable[tuple[int, int]]]
"""Yields the spans [start, end) of one entity type in a text, in any order."""


class EntityType(StrEnum):
    """Entity types with own recognisers. Presidio's entities are named in lower case in addition to these."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "card"
    IBAN = "iban"
    IP = "ip"
    SECRET = "secret"


_MAX_PASSES = 4


class Redactor:
    """Replaces each entity by its type in brackets.

    The result depends on the text alone, and redacting it again finds nothing: the pieces between brackets are searched
    again until nothing is found. Raises ConfigError for an unknown kind, region or Presidio entity, and when `presidio`
    is not empty but Presidio is not installed.
    """

    def __init__(
        self, kinds: Sequence[str], *, phone_regions: Sequence[str] = (), presidio: Sequence[str] = ()
    ) -> None:
        if unknown := sorted(set(kinds) - set(EntityType)):
            raise ConfigError(f"capture.redact: {', '.join(unknown)}: there are {', '.join(EntityType)}")
        self._recognisers = {kind: _recogniser(kind, phone_regions) for kind in dict.fromkeys(map(EntityType, kinds))}
        self._presidio = Presidio(presidio) if presidio else None
        self._kinds = (*map(str, self._recognisers), *(self._presidio.kinds if self._presidio else ()))
        labels = "|".join(map(re.escape, {*EntityType, *self._kinds}))
        self._labels = re.compile(rf"(\[(?:{labels})\])")

    def redact(self, text: str) -> tuple[str, Counter[str]]:
        """The redacted text, and the number of replaced entities by type."""
        counts: Counter[str] = Counter()
        pieces = self._labels.split(text)
        pieces[::2] = [self._piece(piece, counts, _MAX_PASSES) for piece in pieces[::2]]
        return ("".join(pieces), counts) if counts else (text, counts)

    def redact_json(self, text: str) -> tuple[str, Counter[str]]:
        """Redact keys, strings and numbers of a JSON text; a number that holds an entity becomes a string.

        A value is searched together with its key, which may say what it is. Everything else stays byte for byte. Text
        that is not JSON is redacted as text. Returns as `redact` does.
        """
        try:
            json.loads(text, parse_int=len, parse_float=len)
        except (ValueError, RecursionError):
            return self.redact(text)
        counts: Counter[str] = Counter()
        key = ""

        def redacted(token: re.Match[str]) -> str:
            nonlocal key
            string, colon, number = token.groups()
            value = number or json.loads(string)
            if colon:
                key = value
            clean, found = self._value("" if colon else key, value)
            counts.update(found)
            return json.dumps(clean) + (colon or "") if found else token[0]

        return _JSON_TOKEN.sub(redacted, text), counts

    def _value(self, key: str, value: str) -> tuple[str, Counter[str]]:
        label = f"{key}: "
        clean, found = self.redact(label + value)
        return (clean.removeprefix(label), found) if key and clean.startswith(label) else self.redact(value)

    def _piece(self, text: str, counts: Counter[str], passes: int) -> str:
        found = self._found(text)
        if not found:
            return text
        if not passes:
            # Only adversarial text still yields entities next to replaced ones after this many passes.
            (_, _, kind) = found[0]
            counts[kind] += 1
            return f"[{kind}]"
        pieces, done = [], 0
        for start, end, kind in found:
            pieces += [self._piece(text[done:start], counts, passes - 1), f"[{kind}]"]
            counts[kind] += 1
            done = end
        return "".join((*pieces, self._piece(text[done:], counts, passes - 1)))

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """Disjoint spans (start, end, kind) in order. The longest span wins, then the kind that was named first."""
        spans = [
            (start, end, kind.value)
            for kind, recogniser in self._recognisers.items()
            for start, end in recogniser(text)
        ]
        spans += self._presidio(text) if self._presidio else ()
        spans.sort(key=lambda span: (span[0] - span[1], self._kinds.index(span[2]), span))
        taken = bytearray(len(text) if len(spans) > 1 else 0)
        chosen = []
        for start, end, kind in spans:
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * len(taken[start:end])
                chosen.append((start, end, kind))
        return sorted(chosen)


_JSON_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")([ \t\n\r]*:)?|(-?[0-9][0-9.eE+-]*)')
"""The strings and numbers of a valid JSON text (RFC 8259)."""


def _recogniser(kind: EntityType, phone_regions: Sequence[str]) -> Recogniser:
    match kind:
        case EntityType.EMAIL:
            return emails
        case EntityType.PHONE:
            return PhoneRecognizer(phone_regions)
        case EntityType.CARD:
            return cards
        case EntityType.IBAN:
            return ibans
        case EntityType.IP:
            return ips
        case EntityType.SECRET:
            return secrets
