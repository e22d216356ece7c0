"""Paths of a run, on a local or shared file system."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one run under `root`."""

    root: Path
    tables: str = ""
    """Directory or URI of the tables; empty means `root`/tables."""

    def table(self, name: str) -> str:
        """Directory or URI of one Delta table."""
        return f"{self.tables.rstrip('/') or self.root / 'tables'}/{name}"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def release_pointer(self) -> Path:
        """The `Release` that serves users."""
        return self.root / "release.json"

    @property
    def eval_pointer(self) -> Path:
        """The `Release` that the evaluation engine loads; it never serves users."""
        return self.root / "eval.json"

    @property
    def eval_key(self) -> Path:
        """Bearer key of the evaluation endpoint, mode 0600."""
        return self.root / "eval.key"

    @property
    def canary_pointer(self) -> Path:
        """The `Canary` that runs now; the file is missing while there is none."""
        return self.root / "canary.json"

    @property
    def canary_key(self) -> Path:
        """Bearer key of the canary application, sent by the replicas that serve users; mode 0600."""
        return self.root / "canary.key"

    def canary_answers(self, policy_version: int) -> Path:
        """Directory of measurements of a shadow candidate on copies of chats: one file per replica, numbers only."""
        return self.root / "canaries" / f"v{policy_version:04d}"

    @property
    def personal(self) -> Path:
        """Directory of personal policies: their pointers and their adapters."""
        return self.root / "personal"

    def personal_pointer(self, owner: str) -> Path:
        """The `PersonalPolicy` of one owner, `capture.pairing_keys.owner_digest`."""
        return self.personal / f"{owner}.json"

    def personal_version(self, owner: str, version: int) -> Path:
        """Directory of one version of a personal policy: its snapshot, outcome and adapter."""
        return self.personal / owner / f"v{version:04d}"

    @property
    def pseudonym_keys(self) -> Path:
        """Keys of users' pseudonyms and of the pairing digests, mode 0600."""
        return self.root / "pseudonyms.json"

    @property
    def api_keys(self) -> Path:
        """Digests of the API keys with their tenants, mode 0600; a run without this file requires no key."""
        return self.root / "api_keys.json"

    @property
    def erasures(self) -> Path:
        """Tombstones of erased users, by digest; checked whenever the event log is read."""
        return self.root / "erasures.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    def snapshot(self, cycle: int) -> Path:
        return self.root / "snapshots" / f"c{cycle:04d}"

    def candidate(self, policy_version: int) -> Path:
        return self.root / "candidates" / f"v{policy_version:04d}"

    def evaluation(self, policy_version: int) -> Path:
        return self.root / "evaluations" / f"v{policy_version:04d}"

    def release(self, policy_version: int) -> Path:
        """Record of one release. Those of all releases that were ever served are kept, for rollbacks."""
        return self.root / "releases" / f"v{policy_version:04d}.json"

    def cycle(self, cycle: int) -> Path:
        return self.root / "cycles" / f"{cycle:04d}"
