"""Read a request to `/v1/feedback`: a comment, a thumb or an edited answer, about one turn.

Whether the turn exists and belongs to this user is decided in `curate`: it may not be ingested yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.capture.pairing_keys import keyed_digest
from sdpo_ray.errors import DataError
from sdpo_ray.records import Consent, Feedback, Thumb

MAX_COMMENT_CHARS = 10_000
MAX_EDITED_CHARS = 32_000
"""The sum of both is below `redaction.turns.MAX_DIGITS`, so no accepted feedback is refused for its digits."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    turn_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    comment: Annotated[str, msgspec.Meta(max_length=MAX_COMMENT_CHARS)] | None = None
    thumb: Thumb | None = None
    edited: Annotated[str, msgspec.Meta(max_length=MAX_EDITED_CHARS)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FeedbackRequest:
    """Feedback as the client sent it. Made by `read_feedback`; read by `capture.recorder`.

    It is not redacted yet, so its repr is disabled.
    """

    turn_id: str
    tenant: str
    user: str
    consent: Consent
    comment: str
    thumb: Thumb | None
    edited: str
    given_at_s: float
    """Unix time."""

    def feedback(self, *, pseudonym: str, key: bytes) -> Feedback:
        """The record, not redacted yet. The same feedback sent again gets the same id; `key` is the pairing key."""
        content = (self.tenant, self.user, self.turn_id, self.comment, self.thumb or "", self.edited)
        return Feedback(
            feedback_id=f"feedback-{keyed_digest(key, 'feedback', *content)}",
            turn_id=self.turn_id,
            tenant=self.tenant,
            user=pseudonym,
            consent=self.consent,
            comment=self.comment,
            thumb=self.thumb,
            edited=self.edited,
            given_at_s=self.given_at_s,
        )


def read_feedback(
    content: bytes, headers: Mapping[str, str], *, tenant: str, default: Consent, now_s: float
) -> FeedbackRequest:
    """Read the body and headers of a request; `now_s` is Unix time, `default` the tenant's consent.

    Raises DataError for anything but feedback; its message is for the client.
    """
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is no feedback: {error}") from None
    comment, edited = (text if text and text.strip() else "" for text in (body.comment, body.edited))
    if not (comment or edited or body.thumb):
        raise DataError("the body is no feedback: it has neither a comment, a thumb nor an edited answer")
    return FeedbackRequest(
        turn_id=body.turn_id,
        tenant=tenant,
        user=body.user or "",
        consent=consent_of(headers, body.metadata, default),
        comment=comment,
        thumb=body.thumb,
        edited=edited,
        given_at_s=now_s,
    )
