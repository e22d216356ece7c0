"""The sections `[capture]` and `[curate]`: what of live traffic is recorded, and what of that is trained on."""

import os
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sdpo_ray.config.section import Section
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Consent

_ENVIRONMENT = "env:"


class TenantConfig(Section):
    """Settings of one tenant."""

    consent: Consent
    """Consent of this tenant's requests that state none: `train` or `none`."""


class JournalConfig(Section):
    """The event log on a disk that replicas and jobs share."""

    segment_mib: int = Field(default=16, ge=1)
    """Size in MiB at which a segment is sealed."""
    segment_s: float = Field(default=60, gt=0)
    """Age in seconds at which a segment is sealed; an erasure waits at most this long for one."""
    alarm_mib: int = Field(default=256, ge=1)
    """Size in MiB of the unread backlog above which jobs and `/metrics` raise an alarm."""
    max_mib: int = Field(default=4096, ge=2)
    """Size in MiB of the journal above which turns are answered without being recorded, and counted; each replica takes
    up a whole segment."""

    @model_validator(mode="after")
    def _room(self) -> "JournalConfig":
        if self.max_mib < 2 * self.segment_mib:
            raise ValueError("max_mib must be at least two segments: one to read, and one to write")
        return self


class KafkaConfig(Section):
    """The event log on Kafka, for replicas that share no disk."""

    brokers: str = ""
    """Kafka's `bootstrap.servers`; empty keeps the event log in the journal."""
    topic: str = "sdpo-events"
    """Name of the topic."""
    options: dict[str, str] = Field(default_factory=dict)
    """Further librdkafka settings of producer and consumer, such as `security.protocol`. Secrets are given as
    `env:NAME`, the name of an environment variable of replicas and jobs, because the run file is stored beside every
    candidate."""

    @field_validator("options")
    @classmethod
    def _named(cls, options: dict[str, str]) -> dict[str, str]:
        for name, value in options.items():
            if name.endswith(("password", "secret", ".pem")) and not value.startswith(_ENVIRONMENT):
                raise ValueError(f"{name} is a secret: write env:NAME, and set that environment variable")
        return options

    @property
    def resolved_options(self) -> dict[str, str]:
        """`options` with secrets resolved. Raises ConfigError for an environment variable that is not set."""
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
    """Consent (`train` or `none`) of requests that state none (header `x-sdpo-consent` or `metadata.consent`)."""
    tenants: dict[str, TenantConfig] = Field(default_factory=dict)
    """Settings of single tenants, by name."""
    redact: tuple[Literal["email", "phone", "card", "iban", "ip", "secret"], ...] = (
        "email",
        "phone",
        "card",
        "iban",
        "ip",
        "secret",
    )
    """Kinds of personal data that are removed from a record before it is first written."""
    phone_regions: tuple[str, ...] = ("US", "GB", "DE")
    """Regions (ISO 3166) whose national phone number formats are recognised; international numbers always are."""
    presidio: tuple[str, ...] = ()
    """Entities that Presidio detects in addition, such as `US_SSN`; needs the extra `pii`."""
    receipt_timeout_s: float = Field(default=15, gt=0)
    """Most seconds that a response waits for its turn to be durable; then it is sent without a receipt, and counted."""
    journal: JournalConfig = JournalConfig()
    kafka: KafkaConfig = KafkaConfig()


class CurateConfig(Section):
    """How turns become interactions, and how a snapshot of them is drawn for one update."""

    min_new_interactions: int = Field(default=80, ge=1)
    """New interactions since the last draw that start a cycle."""
    max_batch_turns: int = Field(default=20_000, ge=1)
    """Most turns of one batch of the pipeline."""
    max_batch_mib: int = Field(default=64, ge=1)
    """Most MiB of one batch of the pipeline, as in the event log."""
    follow_up_days: float = Field(default=30, gt=0)
    """Days after a response within which its follow-up is paired with it."""

    min_follow_up_chars: int = Field(default=1, ge=1)
    """Fewest characters of an admitted follow-up."""
    max_follow_up_chars: int = Field(default=2000, ge=1)
    """Most characters of an admitted follow-up."""
    max_response_chars: int = Field(default=100_000, ge=1)
    """Most characters of an admitted response."""
    max_age_days: float = Field(default=90, gt=0)
    """Age in days above which follow-ups are neither admitted nor drawn."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that are admitted; empty for any."""
    max_copies: int = Field(default=1, ge=1)
    """Most admitted interactions of one user with the same prompt, response and follow-up."""
    max_per_user_hour: int = Field(default=60, ge=0)
    """Most admitted interactions of one named user an hour; 0 is unlimited."""
    max_per_tenant_hour: int = Field(default=0, ge=0)
    """Most admitted interactions of one tenant an hour, with its anonymous users; 0 is unlimited."""

    max_age_versions: int = Field(default=8, ge=0)
    """Most policy versions between a response and the champion; older interactions are not drawn."""
    snapshot_size: int = Field(default=96, ge=1)
    """Interactions of a snapshot, which one update trains on."""
    recency_half_life: int = Field(default=96, ge=1)
    """Newer interactions after which an interaction's weight in the draw is halved."""
    max_user_share: float = Field(default=0.1, gt=0, le=1)
    """Largest share of `snapshot_size` of one named user; at least one interaction."""
    tenant_mix: dict[str, float] = Field(default_factory=dict)
    """Shares of a snapshot by tenant, in place of their shares of the interactions; other tenants share the rest."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of a snapshot for interactions that an earlier draw could have taken."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of conversations that are never trained on."""

    compact_every: int = Field(default=200, ge=2)
    """Commits after which a table is compacted."""
    keep_files_h: float = Field(default=24, ge=0)
    """Hours for which files that a compaction replaced are kept for readers."""

    @field_validator("tenant_mix")
    @classmethod
    def _shares(cls, mix: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in mix.values()) or sum(mix.values()) > 1 + 1e-9:
            raise ValueError("shares must be positive and at most 1 in total")
        return mix

    @model_validator(mode="after")
    def _lengths(self) -> "CurateConfig":
        if self.min_follow_up_chars > self.max_follow_up_chars:
            raise ValueError("min_follow_up_chars is above max_follow_up_chars")
        return self
