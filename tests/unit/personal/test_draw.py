"""Counts of eligible interactions, and the draw of one user's or tenant's snapshot, from a real table."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.config import CurateConfig, PersonalConfig
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.curate.snapshot import HELD_OUT
from sdpo_ray.errors import DataError
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.draw import draw_personal
from sdpo_ray.privacy.snapshot_erasure import snapshots_under
from sdpo_ray.records import Snapshot
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_interactions
from tests.support.personal import CHAMPION, NOW_S, chats, eligible_of, table_of


def drawn(
    table: Table, final: Path, *users: str, tenant: str = "default", curate: CurateConfig | None = None, **own: object
) -> Snapshot:
    return draw_personal(
        table,
        final,
        tenant=tenant,
        users=users,
        champion_version=CHAMPION,
        seed=1,
        now_s=NOW_S,
        curate=curate or CurateConfig(),
        personal=PersonalConfig.model_validate(own),
    )


def test_only_the_users_rows_are_drawn_and_held_out_rows_are_written_beside_them(tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, chats("ann", 30), chats("bob", 30), chats("ann", 30, tenant="shop"))
    snapshot = drawn(table, layout.personal_version("o", 1) / "snapshot", "ann")
    train, held_out = (read_interactions(Path(snapshot.path) / name) for name in ("", HELD_OUT))
    assert {(each.turn.tenant, each.turn.user) for each in (*train, *held_out)} == {("default", "ann")}
    assert len(train) + len(held_out) == 30
    assert [each.interaction_id for each in train] == list(snapshot.interaction_ids)
    assert [each.interaction_id for each in held_out] == list(snapshot.held_out_ids)
    assert {is_held_out(each.conversation, 0.25) for each in train} == {False}
    assert {is_held_out(each.conversation, 0.25) for each in held_out} == {True}
    # The directories that an erasure searches.
    assert set(snapshots_under(layout.root)) == {Path(snapshot.path), Path(snapshot.path) / HELD_OUT}


def test_all_pseudonyms_of_a_user_are_one_user(tmp_path: Path):
    layout = Layout(tmp_path)
    table = table_of(layout, chats("k1.ann", 10), chats("k2.ann", 10, at_s=5000.0))
    snapshot = drawn(table, tmp_path / "snapshot", "k2.ann", "k1.ann")
    assert len(snapshot.interaction_ids) + len(snapshot.held_out_ids) == 20


def test_the_newest_rows_are_drawn_with_any_seed_and_without_shares_of_tenants(tmp_path: Path):
    table = table_of(Layout(tmp_path), chats("ann", 60), chats("bob", 60))
    curate = CurateConfig(tenant_mix={"shop": 0.9}, replay_share=0.5, max_user_share=0.1, snapshot_size=8)
    snapshot = drawn(table, tmp_path / "snapshot", "ann", curate=curate, snapshot_size=20)
    times = {each.interaction_id: each.follow_up_at_s for each in chats("ann", 60)}
    trainable = [each for each in chats("ann", 60) if not is_held_out(each.conversation, 0.25)]
    newest = sorted(trainable, key=lambda each: -each.follow_up_at_s)[:20]
    assert set(snapshot.interaction_ids) == {each.interaction_id for each in newest}
    assert [times[name] for name in snapshot.interaction_ids] != sorted(times[n] for n in snapshot.interaction_ids)
    assert snapshot.rule.startswith(f"the newest 20 of {len(trainable)} trainable interactions")


def test_no_user_of_a_tenant_has_more_than_the_share_of_the_run(tmp_path: Path):
    table = table_of(
        Layout(tmp_path),
        chats("loud", 80, tenant="shop", at_s=3000.0),
        *(chats(f"u{n}", 4, tenant="shop") for n in range(9)),
    )
    snapshot = drawn(
        table, tmp_path / "snapshot", tenant="shop", curate=CurateConfig(max_user_share=0.25), snapshot_size=20
    )
    users = Counter(each.turn.user for each in read_interactions(Path(snapshot.path)))
    assert users["loud"] == 5
    assert sum(users.values()) == 20


def test_the_limit_of_age_in_versions_is_that_of_personal_policies(tmp_path: Path):
    table = table_of(Layout(tmp_path), chats("ann", 20))
    assert eligible_of(table, champion_version=CHAMPION + 8).users() == {("default", "ann"): 20}
    assert eligible_of(table, champion_version=CHAMPION + 9).users() == {}
    with pytest.raises(DataError, match="nothing to draw: the newest 0 of 0"):
        drawn(table, tmp_path / "snapshot", "nobody")


def test_a_draw_whose_rows_are_all_held_out_is_refused_with_what_it_needs(tmp_path: Path):
    table = table_of(Layout(tmp_path), [each for each in chats("ann", 30) if is_held_out(each.conversation, 0.25)])
    with pytest.raises(
        DataError, match="all interactions are held out, more conversations are needed; the newest 0 of 0"
    ):
        drawn(table, tmp_path / "snapshot", "ann")


def test_eligible_interactions_are_counted_by_user_and_since_a_batch(tmp_path: Path):
    anonymous = [replace(each, turn=replace(each.turn, user="")) for each in chats("x", 7)]
    table = table_of(
        Layout(tmp_path),
        [*chats("ann", 5), *anonymous],
        [*chats("ann", 3, at_s=3000.0), *chats("bob", 2)],
    )
    eligible = eligible_of(table)
    assert eligible.users() == {("default", "ann"): 8, ("default", "bob"): 2}
    assert eligible.tenants() == {"default": 17}
    assert eligible.count("default", ("ann",)) == 8
    assert eligible.count("default", ("ann",), after=1) == 3
    assert eligible.count("default", ("ann", "bob"), after=1) == 5
    assert eligible.count("default", (), after=1) == 5
    assert eligible.count("shop", ()) == 0
