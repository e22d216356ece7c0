"""Personal policies on disk: attempts, the pointer that serving follows, and their removal.

    personal/<owner>.json            the `PersonalPolicy` that is served
    personal/<owner>/v0003/          an attempt: snapshot, outcome.json, and the adapter where it passed the gate

Each attempt starts over from the champion, so a policy has learned from its snapshot and nothing else. Removing it
erases a user from it, and training it again is cheap.
"""

import hashlib
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.io.adapter_config import ADAPTER, ADAPTER_WEIGHTS
from sdpo_ray.io.files import read_json, sealed_directory, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Candidate, FileDigest, PersonalPolicy, Report, Snapshot, Verdict

SNAPSHOT, CANDIDATE = "snapshot", "candidate"
"""Directories of an attempt. The candidate has whole weights, for the evaluation, and is removed after the verdict."""
_OUTCOME = "outcome.json"
_GONE = ".gone"
_KEPT = 2
"""Adapters kept for one owner: the served one, and the one before it, which requests may still use."""
_EVALUATED = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The outcome of an update of a personal policy. Made by `sdpo_ray.personal.trainer`; kept as `outcome.json`."""

    owner: str
    version: int
    base_version: int
    snapshot: Snapshot
    verdict: Verdict
    reasons: tuple[str, ...]
    name: str = ""
    """The released policy's name; empty if none was released."""
    report: Report | None = None
    """None if the learner refused the update."""
    ended_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalSnapshotUse:
    """An attempt whose snapshot held some of the interactions in question. Printed by jobs."""

    owner: str
    version: int
    snapshot_id: str
    num_interactions: int
    served: bool
    """Whether its owner's pointer names it."""


def served_policy(layout: Layout, owner: str) -> PersonalPolicy | None:
    """The policy that the owner's pointer names, stale or not. Raises DataError for a broken file."""
    path = layout.personal_pointer(owner)
    return read_json(path, PersonalPolicy) if path.exists() else None


def known_owners(layout: Layout) -> list[str]:
    """Digests of all owners with an attempt or a policy."""
    attempted = {path.name for path in layout.personal.glob("[!.]*") if path.is_dir()}
    return sorted(attempted | {path.stem for path in layout.personal.glob("[!.]*.json")})


def newest_attempt(layout: Layout, owner: str) -> Attempt | None:
    """The last attempt that has an outcome."""
    return next(_attempts(layout, owner), None)


def next_version(layout: Layout, owner: str) -> int:
    return max(_versions(layout, owner), default=0) + 1


def evaluated_as(owner: str, version: int) -> int:
    """A policy version for the evaluation engine that no shared policy and no other attempt has."""
    digest = hashlib.sha256(f"{owner}/{version}".encode()).digest()
    return _EVALUATED | int.from_bytes(digest[:5])


def seal_adapter(layout: Layout, owner: str, candidate: Candidate) -> PersonalPolicy:
    """Keep a candidate's adapter under a name that no other weights ever have. `conclude` serves it."""
    directory = layout.personal_version(owner, candidate.policy_version)
    with sealed_directory(directory / ADAPTER) as aside:
        for file in (Path(candidate.path) / ADAPTER).iterdir():
            shutil.copy2(file, aside / file.name)
    weights = hashlib.sha256((directory / ADAPTER / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    on = f"v{candidate.policy_version}-on-v{candidate.parent_version}"
    return PersonalPolicy(
        owner=owner,
        version=candidate.policy_version,
        # An owner who was forgotten counts from 1 again, and engines know adapters by name.
        name=f"personal-{owner[:12]}-{on}-{weights[:8]}",
        adapter=str(directory / ADAPTER),
        base_version=candidate.parent_version,
        fingerprint=candidate.fingerprint,
        released_at_s=time.time(),
        digests=(FileDigest(name=ADAPTER_WEIGHTS, sha256=weights),),
    )


def conclude(layout: Layout, attempt: Attempt, policy: PersonalPolicy | None) -> None:
    """Write the outcome of an attempt, point at its policy if there is one, and remove older attempts."""
    directory = layout.personal_version(attempt.owner, attempt.version)
    write_json(directory / _OUTCOME, attempt)
    if policy is not None:
        write_json(layout.personal_pointer(attempt.owner), policy)
    sweep(layout, attempt.owner)


def sweep(layout: Layout, owner: str) -> None:
    """Remove the owner's older attempts and the files of an interrupted one. No update of the owner may be running."""
    passed = [each.version for each in _attempts(layout, owner) if each.name]
    newest = newest_attempt(layout, owner)
    served = served_policy(layout, owner)
    kept = {*passed[:_KEPT], *([newest.version] if newest else []), *([served.version] if served else [])}
    for version in _versions(layout, owner):
        directory = layout.personal_version(owner, version)
        if version not in kept:
            shutil.rmtree(directory)
            continue
        for path in (directory / CANDIDATE, *directory.glob(".*")):
            shutil.rmtree(path, ignore_errors=True)


def remove(layout: Layout, owner: str) -> bool:
    """Remove everything of one owner; True if there was anything. Requests then go to the shared policy."""
    pointer, directory = layout.personal_pointer(owner), layout.personal / owner
    found = pointer.exists() or directory.exists()
    pointer.unlink(missing_ok=True)
    if directory.exists():
        # Renamed first: an update under way then finds no directory to write to.
        gone = layout.personal / f".{owner}{_GONE}"
        shutil.rmtree(gone, ignore_errors=True)
        directory.rename(gone)
        shutil.rmtree(gone)
    return found


def left_behind(layout: Layout) -> list[Path]:
    """Files of interrupted removals and draws. No draw may be running."""
    return [*layout.personal.glob(f".*{_GONE}"), *layout.personal.glob(f"*/v*/.{SNAPSHOT}.partial")]


def snapshot_uses(layout: Layout, interaction_ids: Collection[str]) -> list[PersonalSnapshotUse]:
    """Attempts, running ones included, whose snapshots held one of these interactions."""
    wanted, found = set(interaction_ids), []
    for path in sorted(layout.personal.glob(f"[!.]*/v*/{SNAPSHOT}/snapshot.json")):
        snapshot = read_json(path, Snapshot)
        held = len(wanted.intersection(snapshot.interaction_ids))
        if held:
            owner, version = path.parents[2].name, int(path.parents[1].name.removeprefix("v"))
            policy = served_policy(layout, owner)
            found.append(
                PersonalSnapshotUse(
                    owner=owner,
                    version=version,
                    snapshot_id=snapshot.snapshot_id,
                    num_interactions=held,
                    served=policy is not None and policy.version == version,
                )
            )
    return found


def _versions(layout: Layout, owner: str) -> list[int]:
    """Versions of all attempts, interrupted ones included."""
    return [int(path.name.removeprefix("v")) for path in (layout.personal / owner).glob("v*")]


def _attempts(layout: Layout, owner: str) -> Iterator[Attempt]:
    """Newest first."""
    for version in sorted(_versions(layout, owner), reverse=True):
        path = layout.personal_version(owner, version) / _OUTCOME
        if path.exists():
            yield read_json(path, Attempt)
