"""Attempts and adapters on disk: names are never used twice, old attempts are removed."""

from pathlib import Path

import pytest

from sdpo_ray.io.files import READY, is_ready, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.personal.store import Attempt
from sdpo_ray.records import Candidate, Fingerprint, PersonalPolicy, Snapshot, Verdict

OWNER = "0123456789abcdef0123456789abcdef"


def drawn(layout: Layout, version: int, *ids: str, owner: str = OWNER) -> Snapshot:
    path = layout.personal_version(owner, version) / store.SNAPSHOT
    snapshot = Snapshot(
        snapshot_id=f"s{version}", table_version=0, seed=0, rule="", interaction_ids=ids, held_out_ids=("h",),
        path=str(path), digest="", last_interaction_at_s=0.0,
    )  # fmt: skip
    write_json(path / "snapshot.json", snapshot)
    (path / READY).touch()
    return snapshot


def candidate(layout: Layout, version: int, *, weights: bytes = b"weights", owner: str = OWNER) -> Candidate:
    path = layout.personal_version(owner, version) / store.CANDIDATE
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (path / "adapter" / "adapter_config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"large")
    fingerprint = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))
    return Candidate(
        policy_version=version, parent_version=7, path=str(path), snapshot_id=f"s{version}", fingerprint=fingerprint
    )


def attempt(
    layout: Layout, version: int, *, passes: bool = True, weights: bytes = b"weights", owner: str = OWNER
) -> PersonalPolicy | None:
    """A finished attempt, as the job leaves it."""
    snapshot = drawn(layout, version, "a", "b", owner=owner)
    made = candidate(layout, version, weights=weights, owner=owner)
    policy = store.seal_adapter(layout, owner, made) if passes else None
    ended = Attempt(
        owner=owner, version=version, base_version=7, snapshot=snapshot, ended_at_s=1.0, reasons=("so",),
        verdict=Verdict.PROMOTE if passes else Verdict.HOLD, name=policy.name if policy else "",
    )  # fmt: skip
    store.conclude(layout, ended, policy)
    return policy


def versions(layout: Layout) -> list[str]:
    return sorted(path.name for path in (layout.personal / OWNER).iterdir())


def test_a_policy_is_served_by_its_adapter_alone(layout: Layout):
    policy = attempt(layout, 1)
    assert policy is not None
    assert store.served_policy(layout, OWNER) == policy
    assert is_ready(Path(policy.adapter))
    assert sorted(path.name for path in Path(policy.adapter).iterdir()) == [
        READY,
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (policy.base_version, policy.version, policy.fingerprint.logprobs) == (7, 1, (-0.5,))
    assert not (layout.personal_version(OWNER, 1) / store.CANDIDATE).exists(), "merged weights are large"


def test_a_rejected_attempt_keeps_its_reasons_and_the_served_policy_stays(layout: Layout):
    policy = attempt(layout, 1)
    attempt(layout, 2, passes=False)
    assert store.served_policy(layout, OWNER) == policy
    last = store.newest_attempt(layout, OWNER)
    assert last is not None
    assert (last.version, last.verdict, last.reasons, last.name) == (2, Verdict.HOLD, ("so",), "")
    assert store.next_version(layout, OWNER) == 3


def test_no_name_is_used_for_other_weights_even_after_everything_was_removed(layout: Layout):
    first = attempt(layout, 1)
    assert store.remove(layout, OWNER)
    again = attempt(layout, 1, weights=b"other weights")
    same = attempt(layout, 2, weights=b"other weights")
    assert first is not None
    assert again is not None
    assert same is not None
    assert first.name.startswith("personal-0123456789ab-v1-on-v7-")
    assert len({first.name, again.name, same.name}) == 3


def test_the_last_two_policies_and_the_last_attempt_stay(layout: Layout):
    for version, passes in enumerate((True, True, False, True, False, False), start=1):
        attempt(layout, version, passes=passes)
    assert versions(layout) == ["v0002", "v0004", "v0006"]
    attempt(layout, 7)
    assert versions(layout) == ["v0004", "v0007"]


def test_what_is_served_stays_however_many_attempts_fail(layout: Layout):
    policy = attempt(layout, 1)
    for version in range(2, 9):
        attempt(layout, version, passes=False)
    assert versions(layout) == ["v0001", "v0008"]
    assert store.served_policy(layout, OWNER) == policy


def test_an_interrupted_attempt_is_removed_and_its_number_is_used_again(layout: Layout):
    attempt(layout, 1)
    drawn(layout, 2, "c")
    candidate(layout, 2)
    assert store.next_version(layout, OWNER) == 3
    store.sweep(layout, OWNER)
    assert versions(layout) == ["v0001"]
    assert store.next_version(layout, OWNER) == 2


def test_removing_an_owner_leaves_nothing_and_returns_whether_there_was_anything(layout: Layout):
    attempt(layout, 1)
    drawn(layout, 2, "under way")
    assert store.known_owners(layout) == [OWNER]
    assert store.remove(layout, OWNER)
    assert list(layout.personal.rglob("*")) == []
    assert not store.remove(layout, OWNER)
    assert store.known_owners(layout) == []


def test_an_interrupted_removal_is_found(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    attempt(layout, 1)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(layout, OWNER)
    assert store.known_owners(layout) == []
    assert store.served_policy(layout, OWNER) is None
    (left,) = store.left_behind(layout)
    assert (left / "v0001" / store.SNAPSHOT).exists()
    partial = layout.personal_version("other", 1) / ".snapshot.partial"
    partial.mkdir(parents=True)
    assert partial in store.left_behind(layout)


def test_snapshot_uses_include_attempts_under_way(layout: Layout):
    attempt(layout, 1)
    attempt(layout, 2)
    drawn(layout, 1, "b", "x", owner="f" * 32)
    found = store.snapshot_uses(layout, {"b", "x", "h"})
    assert [(each.owner, each.version, each.num_interactions, each.served) for each in found] == [
        (OWNER, 1, 1, False),
        (OWNER, 2, 1, True),
        ("f" * 32, 1, 2, False),
    ]
    # Held-out interactions are not learned from.
    assert store.snapshot_uses(layout, {"h"}) == []


def test_an_attempts_evaluation_version_is_unique():
    numbers = {store.evaluated_as(owner, version) for owner in ("a", "b") for version in range(1, 50)}
    assert len(numbers) == 98
    assert min(numbers) >= 1 << 48
    assert max(numbers) < 1 << 53, "exact in JSON wherever it is read"
