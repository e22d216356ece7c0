"""What flows: one frozen record for every arrow of the design.

Each record says who makes it and who reads it. `msgspec` encodes and validates them, so a record read
back from disk is exactly the record that was written. No dict crosses a module boundary.
"""

from sdpo_ray.records.policies import (
    Candidate,
    Decision,
    Fingerprint,
    Release,
    Relevance,
    Report,
    Score,
    StepMetrics,
    TokenSignal,
    Verdict,
)
from sdpo_ray.records.turns import (
    BASE_VERSION,
    FOREIGN,
    Consent,
    Event,
    Feedback,
    FinishReason,
    Interaction,
    Message,
    PairingKeys,
    Redaction,
    Refusal,
    Role,
    Sampling,
    Snapshot,
    Thumb,
    ToolCall,
    Turn,
    VersionSpan,
)

__all__ = [
    "BASE_VERSION",
    "FOREIGN",
    "Candidate",
    "Consent",
    "Decision",
    "Event",
    "Feedback",
    "Fingerprint",
    "FinishReason",
    "Interaction",
    "Message",
    "PairingKeys",
    "Redaction",
    "Refusal",
    "Release",
    "Relevance",
    "Report",
    "Role",
    "Sampling",
    "Score",
    "Snapshot",
    "StepMetrics",
    "Thumb",
    "TokenSignal",
    "ToolCall",
    "Turn",
    "Verdict",
    "VersionSpan",
]
