"""Owners of personal policies: serving and the job derive the same digest, under any key."""

from dataclasses import replace

import pytest

from sdpo_ray.capture.pairing_keys import owner_digest, owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import PersonalConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.owners import Owner, owner_named, owners_due
from sdpo_ray.personal.store import Attempt
from sdpo_ray.records import Fingerprint, PersonalPolicy, Snapshot, Verdict
from sdpo_ray.tables.delta_table import Table
from tests.support.personal import CHAMPION, chats, eligible_of, table_of

KEY = b"k" * 32


def served_digests(layout: Layout, user: str, tenant: str = "default") -> tuple[str, ...]:
    """The digest that serving looks up."""
    return owners(Pseudonyms.load(layout.pseudonym_keys), tenant=tenant, user=user)


def test_no_two_owners_share_a_digest():
    pairs = [("a", ""), ("a", "b"), ("ab", ""), ("", "ab"), ("b", "a")]
    digests = {owner_digest(KEY, tenant=tenant, pseudonym=name) for tenant, name in pairs}
    assert len(digests) == len(pairs)
    assert owner_digest(b"other", tenant="a", pseudonym="b") not in digests


def test_serving_and_the_job_use_the_same_digest_for_a_user_and_for_a_tenant(layout: Layout):
    ann = owner_named(layout, tenant="default", user="ann", whole_tenant=False)
    everybody = owner_named(layout, tenant="default", user=None, whole_tenant=True)
    assert served_digests(layout, "ann") == (ann.digest, everybody.digest)
    assert served_digests(layout, "") == (everybody.digest,)
    assert everybody.users == ()
    assert ann.users == (Pseudonyms.load(layout.pseudonym_keys).of("ann"),)


def test_after_a_key_rotation_the_old_policy_is_served_until_there_is_a_new_one(layout: Layout):
    before = owner_named(layout, tenant="default", user="ann", whole_tenant=False)
    Pseudonyms.load(layout.pseudonym_keys).rotate()
    after = owner_named(layout, tenant="default", user="ann", whole_tenant=False)
    assert served_digests(layout, "ann")[:2] == (after.digest, before.digest)
    assert after.former == (before.digest,)
    assert after.users[1:] == before.users


def test_no_owner_and_two_owners_are_refused(layout: Layout):
    for user, whole in ((None, False), ("", False), ("ann", True)):
        with pytest.raises(ConfigError, match="name an owner"):
            owner_named(layout, tenant="default", user=user, whole_tenant=whole)


def due(layout: Layout, table: Table, champion: int = CHAMPION, least: int = 5) -> list[Owner]:
    eligible = eligible_of(table, champion_version=champion)
    return list(owners_due(layout, eligible, PersonalConfig(min_interactions=least), champion))


def attempted(layout: Layout, owner: Owner, *, base: int, last_batch: int, served: bool, version: int = 1) -> None:
    snapshot = Snapshot(
        snapshot_id="s", table_version=0, seed=0, rule="", interaction_ids=("a",), held_out_ids=(), path="", digest="",
        last_interaction_at_s=0.0, last_batch=last_batch,
    )  # fmt: skip
    attempt = Attempt(
        owner=owner.digest, version=version, base_version=base, snapshot=snapshot, ended_at_s=0.0, reasons=(),
        verdict=Verdict.PROMOTE if served else Verdict.HOLD, name="p" if served else "",
    )  # fmt: skip
    write_json(layout.personal_version(owner.digest, version) / "outcome.json", attempt)
    if served:
        policy = PersonalPolicy(
            owner=owner.digest, version=version, name="p", adapter="", base_version=base, released_at_s=0.0,
            fingerprint=Fingerprint(token_ids=(), logprobs=()),
        )  # fmt: skip
        write_json(layout.personal_pointer(owner.digest), policy)


def test_users_with_enough_interactions_are_due_largest_first(layout: Layout):
    table = table_of(layout, chats("ann", 6), chats("bob", 9), chats("cid", 4))
    found = due(layout, table)
    assert [each.users for each in found] == [("bob",), ("ann",)]
    pairing = Pseudonyms.load(layout.pseudonym_keys).pairing_key
    assert found[1].digest == owner_digest(pairing, tenant="default", pseudonym="ann")


def test_an_owner_is_due_again_with_enough_new_interactions(layout: Layout):
    table = table_of(layout, chats("ann", 6), chats("ann", 4, at_s=3000.0))
    (ann,) = due(layout, table)
    attempted(layout, ann, base=CHAMPION, last_batch=1, served=False)
    assert due(layout, table) == []
    table_of(layout, chats("ann", 1, at_s=5000.0))
    assert due(layout, table) == [ann]


def test_a_stale_policy_is_due_once_and_a_rejected_attempt_is_not_due(layout: Layout):
    table = table_of(layout, chats("ann", 6), chats("bob", 6))
    ann, bob = sorted(due(layout, table), key=lambda owner: owner.users)
    attempted(layout, ann, base=CHAMPION, last_batch=2, served=True)
    attempted(layout, bob, base=CHAMPION, last_batch=2, served=False)
    assert due(layout, table) == []
    assert due(layout, table, champion=CHAMPION + 1) == [ann]
    attempted(layout, ann, base=CHAMPION + 1, last_batch=2, served=False, version=2)
    assert due(layout, table, champion=CHAMPION + 1) == []
    assert due(layout, table, champion=CHAMPION + 2) == [ann]


def test_a_tenant_is_due_once_it_has_a_policy(layout: Layout):
    table = table_of(layout, *(chats(f"u{n}", 2, tenant="shop") for n in range(4)))
    assert due(layout, table) == []
    shop = owner_named(layout, tenant="shop", user=None, whole_tenant=True)
    attempted(layout, shop, base=CHAMPION, last_batch=4, served=True)
    assert due(layout, table, champion=CHAMPION + 1) == [replace(shop)]
