"""HTTP headers of ours, by name: what a client may say, and what it is told."""

CONSENT = "x-sdpo-consent"
CONVERSATION_ID = "x-sdpo-conversation-id"

TURN_ID = "x-sdpo-turn-id"
"""The receipt: this turn is on disk; a stream names it up front."""
FEEDBACK_ID = "x-sdpo-feedback-id"
"""The receipt of feedback: it is on disk."""
POLICY_VERSION = "x-sdpo-policy-version"
STALL_S = "x-sdpo-stall-s"
"""Seconds for which the last swap held requests back."""
SWAP_ERROR = "x-sdpo-swap-error"
"""Why the release that is pointed at is not served."""
