"""The data plane's sections of a run file: what is recorded of live traffic, and what of it is learned from."""

import os
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sdpo_ray.config.section import Section
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Consent

_ENVIRONMENT = "env:"


class TenantConfig(Section):
    """What differs for one tenant."""

    consent: Consent
    """Consent of this tenant's requests that state none."""


class JournalConfig(Section):
    """The event log on a disk that replicas and jobs share."""

    segment_mib: int = Field(default=16, ge=1)
    """A segment is sealed at this size."""
    segment_s: float = Field(default=60, gt=0)
    """A segment is sealed when it is this old: the longest that an erasure waits for one."""
    alarm_mib: int = Field(default=256, ge=1)
    """Backlog above which the jobs and `/metrics` raise an alarm."""
    max_mib: int = Field(default=4096, ge=2)
    """Size of the journal above which turns are answered and no longer recorded, which is counted; each replica takes
    up a whole segment."""

    @model_validator(mode="after")
    def _room(self) -> "JournalConfig":
        if self.max_mib < 2 * self.segment_mib:
            raise ValueError("max_mib must be at least two segments: one that is read, and one that is written")
        return self


class KafkaConfig(Section):
    """The event log on Kafka, for replicas that share no disk."""

    brokers: str = ""
    """`bootstrap.servers`; empty keeps the log in the journal."""
    topic: str = "sdpo-events"
    options: dict[str, str] = Field(default_factory=dict)
    """Further librdkafka settings of producer and consumer, such as `security.protocol`.

    A run file is stored beside every candidate, so a secret is named and not written: `env:NAME` is the value of an
    environment variable of replicas and jobs.
    """

    @field_validator("options")
    @classmethod
    def _named(cls, options: dict[str, str]) -> dict[str, str]:
        for name, value in options.items():
            if name.endswith(("password", "secret", ".pem")) and not value.startswith(_ENVIRONMENT):
                raise ValueError(f"{name} is a secret: write env:NAME, and put it into that environment variable")
        return options

    @property
    def resolved_options(self) -> dict[str, str]:
        """The settings with their secrets. Raises ConfigError for an environment variable that is not set."""
        resolved = {}
        for option, value in self.options.items():
            name = value.removeprefix(_ENVIRONMENT)
            if value.startswith(_ENVIRONMENT) and name not in os.environ:
                raise ConfigError(f"capture.kafka.options: {option} is in {name}, which is not set")
            resolved[option] = os.environ[name] if value.startswith(_ENVIRONMENT) else value
        return resolved


class CaptureConfig(Section):
    """What is recorded of live traffic."""

    consent: Consent = Consent.TRAIN
    """Consent of requests that state none (header `x-sdpo-consent` or `metadata.consent`)."""
    tenants: dict[str, TenantConfig] = Field(default_factory=dict)
    """By name; others have the defaults above."""
    redact: tuple[Literal["email", "phone", "card", "iban", "ip", "secret"], ...] = (
        "email",
        "phone",
        "card",
        "iban",
        "ip",
        "secret",
    )
    """What is taken out of a record before it is first written."""
    phone_regions: tuple[str, ...] = ("US", "GB", "DE")
    """Regions (ISO 3166) whose national way of writing a phone number is known; international ones always are."""
    presidio: tuple[str, ...] = ()
    """Entities that Presidio looks for, too, such as `US_SSN`; needs the extra `pii`."""
    receipt_timeout_s: float = Field(default=15, gt=0)
    """Longest that an answer waits for its turn to be durable; then it goes out without a receipt, which is counted."""
    journal: JournalConfig = JournalConfig()
    kafka: KafkaConfig = KafkaConfig()


class CurateConfig(Section):
    """Turns to interactions, and the draw for one update."""

    min_new_interactions: int = Field(default=80, ge=1)
    """Admitted interactions since the last draw that start a cycle."""
    max_batch_turns: int = Field(default=20_000, ge=1)
    """Turns of one micro-batch."""
    max_batch_mib: int = Field(default=64, ge=1)
    """Size of one micro-batch in the log."""
    follow_up_days: float = Field(default=30, gt=0)
    """How long an answer waits for its follow-up."""

    min_follow_up_chars: int = Field(default=1, ge=1)
    max_follow_up_chars: int = Field(default=2000, ge=1)
    max_response_chars: int = Field(default=100_000, ge=1)
    max_age_days: float = Field(default=90, gt=0)
    """Older follow-ups are not admitted, and not drawn."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that are learned from; empty for any."""
    max_copies: int = Field(default=1, ge=1)
    """How often one user may have the same (x, y, o) admitted."""
    max_per_user_hour: int = Field(default=60, ge=0)
    """Interactions of one named user that are admitted an hour; 0 for any number."""
    max_per_tenant_hour: int = Field(default=0, ge=0)
    """Of one tenant, its anonymous users included; 0 for any number."""

    max_age_versions: int = Field(default=8, ge=0)
    """Interactions with a policy this many versions older than the champion are not drawn."""
    snapshot_size: int = Field(default=96, ge=1)
    """Interactions an update learns from."""
    recency_half_life: int = Field(default=96, ge=1)
    """An interaction's weight in the draw halves with every so many newer ones."""
    max_user_share: float = Field(default=0.1, gt=0, le=1)
    """Largest share of `snapshot_size` that one named user may have; at least one interaction."""
    tenant_mix: dict[str, float] = Field(default_factory=dict)
    """Share of a snapshot by tenant, where it is to differ from what they sent; the others share the rest."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of a snapshot that is kept for interactions which an earlier draw could have taken already."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of conversations never trained on."""

    compact_every: int = Field(default=200, ge=2)
    """Commits after which a table is compacted."""
    keep_files_h: float = Field(default=24, ge=0)
    """How long files that a compaction replaced stay for those who read them."""

    @field_validator("tenant_mix")
    @classmethod
    def _shares(cls, mix: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in mix.values()) or sum(mix.values()) > 1 + 1e-9:
            raise ValueError("shares are positive and at most 1 together")
        return mix

    @model_validator(mode="after")
    def _lengths(self) -> "CurateConfig":
        if self.min_follow_up_chars > self.max_follow_up_chars:
            raise ValueError("min_follow_up_chars is above max_follow_up_chars")
        return self
