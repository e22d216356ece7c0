"""The events of a run: one record a line of `events.jsonl`, told apart by `name`. No event holds user text.

    {"name":"stage_started","at_s":1767225600.0,"cycle":3,"stage":"draw"}

Made by the stages of `sdpo_ray.pipeline`, `sdpo_ray.personal` and `sdpo_ray.privacy`; read by `sdpo_ray.demo`. The
responses of a shadow release are kept in the same format, in files of their own.
"""

import re
import time
from typing import TypeAlias

import msgspec

from sdpo_ray.records.policies import Verdict


def _event_name(class_name: str) -> str:
    """`StageStarted` -> `stage_started`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class _RunEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="name", tag=_event_name):
    at_s: float = msgspec.field(default_factory=time.time)
    """Unix time."""
    cycle: int = 0
    """0 for an event that belongs to no cycle."""


class StageStarted(_RunEvent, frozen=True, kw_only=True):
    stage: str
    """`curate`, or one of `pipeline.cycle.STAGES`."""


class StageProgress(_RunEvent, frozen=True, kw_only=True):
    stage: str
    done: int
    total: int
    """Optimizer steps or evaluation prompts."""


class StageFinished(_RunEvent, frozen=True, kw_only=True):
    """Written when a stage ends without an exception."""

    stage: str
    seconds: float


class Curated(_RunEvent, frozen=True, kw_only=True):
    """What there is to learn from, after a round of curation."""

    new_interactions: int
    """Interactions that the next snapshot can draw and the last one could not."""
    needed: int
    """`curate.min_new_interactions`."""
    turns: int
    interactions: int
    """Both: rows of the tables."""
    refused: dict[str, int]
    """Turns, pairs and comments since the stage started that became no interaction, by reason."""


class TablesCompacted(_RunEvent, frozen=True, kw_only=True):
    tables: tuple[str, ...]


class BacklogChanged(_RunEvent, frozen=True, kw_only=True):
    """The unread part of the event log rose above `capture.journal.alarm_mib`, or fell below it again."""

    mib: int
    alarm_mib: int
    above: bool


class ProbeFailed(_RunEvent, frozen=True, kw_only=True):
    """A probe of the evaluation raised; its scores are missing from the report."""

    counter: str
    """`evaluate.<probe>.<exception>`."""
    n: int


class ReviewAwaited(_RunEvent, frozen=True, kw_only=True):
    policy_version: int


class Reviewed(_RunEvent, frozen=True, kw_only=True):
    policy_version: int
    review: str
    """`approved` or `rejected`."""


class CanaryProgress(_RunEvent, frozen=True, kw_only=True):
    """What a canary and the champion have shown so far."""

    mode: str
    """`canary` or `shadow`."""
    judged: int
    """Responses of the candidate that count towards `needed`."""
    needed: int
    """`promote.canary.min_answers`."""
    answers: int
    answers_champion: int
    reactions: int
    reactions_champion: int
    complaints: int
    complaints_champion: int
    copies_failed: int
    """Requests of a shadow release that failed."""
    evidence_complaints: float
    evidence_slow: float
    evidence_needed: float


class ShadowResponse(_RunEvent, frozen=True, kw_only=True):
    """A response of a shadow release. Made by `serve.canary.shadow`; read by `pipeline.canary_watch`."""

    seconds: float
    tokens: int
    error: str
    """Empty for a response without an error."""


class CycleFinished(_RunEvent, frozen=True, kw_only=True):
    policy_version: int
    verdict: Verdict
    reasons: tuple[str, ...]
    champion_version: int
    """The version that is served after the cycle."""


class AliasFollowed(_RunEvent, frozen=True, kw_only=True):
    """The release pointer was moved to the version that the MLflow alias names."""

    alias_version: int | None
    champion_version: int


class AliasRestored(_RunEvent, frozen=True, kw_only=True):
    """The MLflow alias was moved back to the version that is served."""

    alias_version: int | None
    champion_version: int


class PersonalUpdateFinished(_RunEvent, frozen=True, kw_only=True):
    owner: str
    """Digest."""
    version: int
    base_version: int
    verdict: Verdict
    reasons: tuple[str, ...]


class UserErased(_RunEvent, frozen=True, kw_only=True):
    erasure_id: str
    snapshots: int
    """Snapshots that were rewritten."""
    rows: dict[str, int]
    """Rows deleted, by table."""


RunEvent: TypeAlias = (
    StageStarted
    | StageProgress
    | StageFinished
    | Curated
    | TablesCompacted
    | BacklogChanged
    | ProbeFailed
    | ReviewAwaited
    | Reviewed
    | CanaryProgress
    | ShadowResponse
    | CycleFinished
    | AliasFollowed
    | AliasRestored
    | PersonalUpdateFinished
    | UserErased
)
