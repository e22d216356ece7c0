"""Erasure of a user from a run with personal policies, without Ray and MLflow."""

import threading
from pathlib import Path

import pytest

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.curate.snapshot import HELD_OUT
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store as personal_store
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.lineage import trace_lineage
from sdpo_ray.privacy.run_history import read_run_history
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.tables.arrow_schemas import split_of
from tests.support.erasing import VICTIM, Killed, erase, erase_job
from tests.support.personal import PEOPLE, add_personal_policy, owner_of, run_with_personal_policies
from tests.support.user_data import hits, interactions_of, people, pseudonym, store


def test_the_users_policy_is_erased_and_so_is_a_tenants_that_learned_from_the_user(layout: Layout):
    run_with_personal_policies(layout)
    ann, theirs, tenant = (owner_of(layout, user) for user in ("ann", VICTIM, None))
    words = (VICTIM, pseudonym(layout, VICTIM), theirs.digest)
    assert {name.split("/")[0] for name in hits(layout.root, words)} >= {"personal", "tables"}
    erased = erase(layout)
    assert hits(layout.root, words) == {}
    assert erased.personal == sorted([theirs.digest, tenant.digest])
    assert personal_store.known_owners(layout) == [ann.digest]
    assert personal_store.served_policy(layout, ann.digest) is not None
    assert personal_store.served_policy(layout, tenant.digest) is None
    # Snapshots that were removed with their policy are not rewritten first.
    assert erased.snapshots == {}
    add_personal_policy(layout, tenant)
    assert hits(layout.root, words) == {}


def test_a_dry_run_names_the_same_owners_and_removes_none(layout: Layout):
    run_with_personal_policies(layout)
    found = erase(layout, dry=True)
    assert len(personal_store.known_owners(layout)) == 3
    assert found.personal == erase(layout).personal


def test_held_out_rows_are_erased_and_the_tenants_policy_stays(layout: Layout):
    said = people(layout, PEOPLE, follow_ups=6)
    interactions = [each for turns in said.values() for each in interactions_of(turns)]
    store(layout, [each for turns in said.values() for each in turns], interactions)
    tenant = owner_of(layout, None)
    splits = {user: interactions_of(turns)[0].conversation for user, turns in said.items()}
    # All of the victim's conversation, and nothing of the one after it, is held out.
    order = sorted(splits, key=lambda user: split_of(splits[user]))
    tester = order[0]
    share = (split_of(splits[order[0]]) + split_of(splits[order[1]])) / 2 / 2**32
    add_personal_policy(layout, tenant, held_out=share)
    held_out = layout.personal_version(tenant.digest, 1) / personal_store.SNAPSHOT / HELD_OUT
    erased = erase(layout, user=tester)
    assert erased.personal == []
    assert erased.snapshots == {str(held_out): 6}
    assert hits(layout.root, (tester,)) == {}
    assert personal_store.served_policy(layout, tenant.digest) is not None


def test_their_policies_are_found_under_every_key(layout: Layout):
    run_with_personal_policies(layout)
    before = owner_of(layout, VICTIM).digest
    Pseudonyms.load(layout.pseudonym_keys).rotate()
    assert owner_of(layout, VICTIM).digest != before
    assert before in erase(layout).personal
    assert before not in personal_store.known_owners(layout)


def test_an_update_under_way_loses_its_snapshot(layout: Layout):
    run_with_personal_policies(layout)
    tenant = owner_of(layout, None)
    add_personal_policy(layout, tenant, version=2, ended=False)
    assert tenant.digest in erase(layout).personal
    assert not layout.personal_version(tenant.digest, 2).exists()


def test_an_erasure_waits_for_a_draw_and_a_draw_for_an_erasure(layout: Layout):
    run_with_personal_policies(layout)
    erased = threading.Event()

    def erase_in_thread() -> None:
        erase(layout)
        erased.set()

    with file_lock(layout.personal):
        thread = threading.Thread(target=erase_in_thread)
        thread.start()
        assert not erased.wait(1.0)
        add_personal_policy(layout, owner_of(layout, None), version=2)
    thread.join()
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM))) == {}


def test_an_erasure_killed_at_a_policy_is_finished_by_the_next_one(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    run_with_personal_policies(layout)
    theirs = owner_of(layout, VICTIM).digest

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(personal_store.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            erase(layout)
    erase(layout)
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM), theirs)) == {}
    assert personal_store.known_owners(layout) == [owner_of(layout, "ann").digest]


def test_lineage_lists_the_personal_policies_that_learned_from_a_user(layout: Layout):
    run_with_personal_policies(layout)
    theirs, tenant = owner_of(layout, VICTIM), owner_of(layout, None)
    subject = find_data_subject(layout, tenant="default", user=VICTIM, turn_ids=())
    footprint = subject.footprint(UserTables.of(layout))
    ids = subject.interaction_ids(layout, footprint)
    uses = personal_store.snapshot_uses(layout, ids)
    found = trace_lineage(read_run_history(layout), footprint, ids, uses).personal
    assert {(each.owner, each.num_interactions, each.served) for each in found} == {
        (theirs.digest, 2, True),
        (tenant.digest, 2, True),
    }


def test_the_job_counts_personal_policies_and_prints_no_name(layout: Layout):
    run_with_personal_policies(layout)
    done = erase_job(layout, "--user", VICTIM, "--yes")
    assert done.returncode == 0, done.stderr
    assert "personal policies, and their adapters" in done.stderr
    assert VICTIM not in done.stdout + done.stderr
