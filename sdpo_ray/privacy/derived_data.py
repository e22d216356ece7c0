"""A user's text outside the tables: snapshots, records of candidates, pages, drafts, personal policies and MLflow."""

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.capture.pairing_keys import owner_digest
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run
from sdpo_ray.explain.pages import page_of
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.privacy.data_subject import DataSubject
from sdpo_ray.privacy.run_history import read_run_history
from sdpo_ray.privacy.snapshot_erasure import rewrite, rows_of, snapshots_under
from sdpo_ray.privacy.user_footprint import UserFootprint
from sdpo_ray.promote.artifact_erasure import erase_in_file
from sdpo_ray.promote.registry import Registry

_MLFLOW_DATABASE, _MLFLOW_ARTIFACTS = "mlflow.db", "mlartifacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedData:
    """What `DerivedData.erase` removed, as in `ErasureReport`. Read by `privacy.erasure`."""

    interaction_ids: frozenset[str]
    """Ids of the erased interactions, those of earlier erasures of the data subject included."""
    snapshots: dict[str, int]
    records: list[str]
    mlflow_runs: int
    personal: list[str]
    leftovers: list[str]


class DerivedData:
    """What a run derived from one data subject's turns. `on_step` is called with the name of each step."""

    def __init__(self, run: Run, subject: DataSubject, on_step: Callable[[str], None]) -> None:
        self._run = run
        self._layout = run.layout
        self._subject = subject
        self._on_step = on_step

    def snapshots(self, footprint: UserFootprint) -> Iterator[tuple[Path, list[str]]]:
        """Directories of snapshots that hold rows of theirs, with the ids of these interactions."""
        for path in snapshots_under(self._layout.root):
            if ids := rows_of(path, self._subject.users, footprint.source_ids):
                yield path, ids

    def personal_owners(self, interaction_ids: Collection[str]) -> list[str]:
        """Owners of the personal policies that are theirs, or that drew one of these interactions."""
        known = set(store.known_owners(self._layout))
        uses = store.snapshot_uses(self._layout, interaction_ids)
        return sorted((self._own_digests() & known) | {use.owner for use in uses})

    def erase(self, footprint: UserFootprint, *, erasure_id: str) -> ErasedData:
        """Remove all of it. Safe to repeat after it was interrupted; what an interrupted call removed is not returned.

        Raises DataError for a broken file.
        """
        # Personal policies first: they are found by the ids in their snapshots.
        personal = self.personal_owners(self._subject.interaction_ids(self._layout, footprint))
        for owner in personal:
            self._on_step("removing personal policies")
            store.remove(self._layout, owner)
        snapshots = {}
        for path, ids in self.snapshots(footprint):
            self._on_step(f"rewriting {path}")
            rewrite(path, ids, erasure_id=erasure_id)
            snapshots[str(path)] = len(ids)
        erased = self._subject.interaction_ids(self._layout, footprint)
        self._on_step("reading the candidates' records")
        leftovers = []
        for path in [*_interrupted(self._layout), *self._training(erased), *(page_of(each) for each in erased)]:
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                leftovers.append(str(path))
        return ErasedData(
            interaction_ids=erased,
            snapshots=snapshots,
            records=[str(path) for path in _records(self._layout.root) if erase_in_file(path, erased)],
            mlflow_runs=self._erase_in_mlflow(erased, owners={*personal, *self._own_digests()}),
            personal=personal,
            leftovers=leftovers,
        )

    def _erase_in_mlflow(self, erased: Collection[str], *, owners: Collection[str]) -> int:
        if not self._run.promote.tracking_uri and not (self._layout.root / _MLFLOW_DATABASE).exists():
            return 0
        self._on_step("erasing in MLflow")
        # One registry for both: each opens MLflow's database, which takes seconds.
        registry = Registry.of(self._run)
        personal = PersonalRuns(registry.tracking, model_name=self._run.promote.model_name)
        return registry.erase(erased) + personal.erase(owners)

    def _own_digests(self) -> set[str]:
        """Owner digests of their own personal policies, whether or not there is one."""
        key = Pseudonyms.load(self._layout.pseudonym_keys).pairing_key
        return {owner_digest(key, tenant=tenant, pseudonym=name) for tenant, name in self._subject.users}

    def _training(self, erased: Collection[str]) -> list[Path]:
        """Checkpoints of interrupted updates that drew one of these: such an update starts over."""
        updates = read_run_history(self._layout).updates_from(erased)
        candidates = [self._layout.candidate(update.policy_version) for update in updates]
        return [path.with_name(f".{path.name}.train") for path in candidates]


def _records(root: Path) -> list[Path]:
    """Records of candidates, but for MLflow's copies, which `promote.registry` rewrites."""
    found = [*sorted(root.rglob("candidate.json")), *sorted(root.glob("cycles/*/distill.json"))]
    return [path for path in found if not path.is_relative_to(root / _MLFLOW_ARTIFACTS)]


def _interrupted(layout: Layout) -> list[Path]:
    """Partial files of an interrupted draw, update or record, which no process resumes."""
    patterns = ("snapshots/.*.partial", "candidates/.*.partial", "candidates/*/.*.json.*", "cycles/*/.*.json.*")
    shared = [path for pattern in patterns for path in sorted(layout.root.glob(pattern))]
    return [*shared, *store.left_behind(layout)]
