"""Redaction: remove personal data and secrets from a text before it is first written.

Each entity is replaced by its type in brackets, such as `[email]`. Every type is validated, not only matched by its
pattern: a card's check digit, an IBAN's remainder, a phone number's numbering plan. Names and postal addresses have no
such form; they stay, unless the run file configures Presidio for them.
"""

from sdpo_ray.redaction.redactor import EntityType, Redactor
from sdpo_ray.redaction.turns import redact_feedback, redact_turn

__all__ = ["EntityType", "Redactor", "redact_feedback", "redact_turn"]
