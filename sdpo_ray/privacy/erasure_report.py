"""The result of an erasure or of its dry run."""

from dataclasses import dataclass, field

from sdpo_ray.privacy.run_history import LearnedVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """What was removed, or would be. Made by `privacy.erasure`; printed by `jobs.erase`. Holds no name of a user."""

    dry_run: bool
    erasure_id: str = ""
    """As in `erasures.json` and the snapshots' `erased.json`."""
    rows: dict[str, int]
    """By table."""
    events_in_log: int | None
    """Left in the event log; None on Kafka, which may keep them until the topic's retention ends."""
    snapshots: dict[str, int]
    """Interactions removed, by directory."""
    records: list[str] = field(default_factory=list)
    """Candidates' records that showed the user's text, and were rewritten."""
    mlflow_runs: int = 0
    """Runs whose artifacts were redrawn, and deleted runs of personal policies; 0 in a dry run, which skips MLflow."""
    personal: list[str]
    """Owners whose personal policies were removed: the user's own, and a tenant's that learned from the user."""
    leftovers: list[str] = field(default_factory=list)
    """Files of interrupted work, and pages of `jobs/explain.py`."""
    ambiguous_turns: int
    """Turns of the user, or of another user with the same text: they stay."""
    learned: list[LearnedVersion]
    """Policies that learned from the user; their weights stay."""
    newest_release_without: int | None
    """The newest release that did not; None if every release did."""
