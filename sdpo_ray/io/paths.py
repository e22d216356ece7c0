"""Every path of one run. Paths are local or on a shared file system."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one run under `root`."""

    root: Path
    tables: str = ""
    """Directory or URI of the tables; empty for `root`/tables."""

    def table(self, name: str) -> str:
        """Directory or URI of one Delta table."""
        return f"{self.tables.rstrip('/') or self.root / 'tables'}/{name}"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def release_pointer(self) -> Path:
        """The `Release` that users are served."""
        return self.root / "release.json"

    @property
    def eval_pointer(self) -> Path:
        """The `Release` that the evaluation engine loads; users never meet it."""
        return self.root / "eval.json"

    @property
    def eval_key(self) -> Path:
        """Bearer key of the evaluation endpoint, mode 0600."""
        return self.root / "eval.key"

    @property
    def canary_pointer(self) -> Path:
        """The `Trial` of a candidate among users; there is no such file while there is none."""
        return self.root / "canary.json"

    @property
    def canary_key(self) -> Path:
        """Bearer key between the users' replicas and the canary's, mode 0600."""
        return self.root / "canary.key"

    def canary_answers(self, policy_version: int) -> Path:
        """Directory of what copies of chats showed of a candidate in shadow: numbers, a file a replica."""
        return self.root / "canaries" / f"v{policy_version:04d}"

    @property
    def personal(self) -> Path:
        """Pointers of personal policies, and the directories of their adapters."""
        return self.root / "personal"

    def personal_pointer(self, owner: str) -> Path:
        """The `PersonalPolicy` of one owner."""
        return self.personal / f"{owner}.json"

    def personal_version(self, owner: str, version: int) -> Path:
        """One attempt at a personal policy: what it learned from, what became of it, and its adapter."""
        return self.personal / owner / f"v{version:04d}"

    @property
    def pseudonym_keys(self) -> Path:
        """Keys of the users' pseudonyms and of pairing, mode 0600."""
        return self.root / "pseudonyms.json"

    @property
    def api_keys(self) -> Path:
        """Digests of the API's keys with their tenants, mode 0600; a run without this file asks for none."""
        return self.root / "api_keys.json"

    @property
    def erasures(self) -> Path:
        """Who was erased, by digest; read whenever the event log is."""
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
        """Every release that was ever served keeps its record, so that a rollback needs nothing else."""
        return self.root / "releases" / f"v{policy_version:04d}.json"

    def cycle(self, cycle: int) -> Path:
        return self.root / "cycles" / f"{cycle:04d}"
