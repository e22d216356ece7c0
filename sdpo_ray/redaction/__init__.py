"""Personal data and secrets are taken out of a text before it is first written.

What is found is replaced by its kind in brackets, such as `[email]`. Every kind has a form that is checked, not only
a look: a card's check digit, an IBAN's remainder, a phone number's plan. Names and postal addresses have no such form
and stay, unless Presidio is asked for them.
"""

from sdpo_ray.redaction.redactor import EntityType, Redactor
from sdpo_ray.redaction.turns import redact_feedback, redact_turn

__all__ = ["EntityType", "Redactor", "redact_feedback", "redact_turn"]
