"""Lineage of policies and users, on cycles made by hand."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.lineage import ancestors, trace_lineage
from sdpo_ray.privacy.run_history import RunHistory, UpdateRecord, read_run_history
from sdpo_ray.privacy.user_footprint import UserFootprint
from sdpo_ray.records import Verdict, version_of_cycle
from tests.support import builders
from tests.support.cycle_records import entry
from tests.support.paths import REPOSITORY
from tests.support.user_data import finished_cycle, interactions_of, people, pseudonym, store

NOTHING = UserFootprint(
    turn_ids=frozenset(),
    feedback_ids=frozenset(),
    interaction_ids=frozenset(),
    conversations=frozenset(),
    ambiguous_turns=0,
)


def update(cycle: int, parent: int, *drawn: str, trained: bool = True) -> UpdateRecord:
    return UpdateRecord(
        cycle=cycle,
        policy_version=version_of_cycle(cycle),
        parent_version=parent,
        snapshot=replace(entry(cycle).snapshot, interaction_ids=drawn),
        trained=trained,
        verdict=Verdict.PROMOTE,
    )


FORKED = RunHistory(
    updates=(
        update(1, 1, "a", "b"),
        update(2, 2, "c"),
        update(3, 1, "d", "b"),
        update(4, 2, "a", trained=False),
        update(5, 3, "a"),
        update(6, 1, "e"),
    ),
    released=frozenset({1, 2, 3, 7}),
    served=3,
)


def test_a_policy_learned_from_its_snapshot_and_from_those_of_its_ancestors():
    found = FORKED.learned({"a"})
    assert [(each.policy_version, each.num_interactions) for each in found] == [(2, 1), (3, 0), (6, 1)]
    assert [(each.released, each.served) for each in found] == [(True, False), (True, True), (False, False)]
    assert FORKED.learned({"nothing"}) == []
    assert [each.policy_version for each in FORKED.learned({"b", "d"})] == [2, 3, 4, 6]
    assert FORKED.learned({"b", "d"})[2].num_interactions == 2


def test_a_cycle_that_drew_and_made_no_candidate_is_marked():
    assert [(each.cycle, each.trained) for each in FORKED.updates_from({"a"})] == [(1, True), (4, False), (5, True)]


def test_the_newest_release_without_a_user_is_found():
    assert FORKED.newest_release_without(FORKED.learned({"a"})) == 7
    assert FORKED.newest_release_without(FORKED.learned({"e", "a"})) == 1
    assert replace(FORKED, released=frozenset({2})).newest_release_without(FORKED.learned({"a"})) is None


def test_a_release_is_followed_to_the_base_with_the_size_of_each_snapshot():
    line = ancestors(FORKED, 6, lambda path: Counter())
    assert [each.policy_version for each in line] == [6, 3, 2, 1]
    assert [each.num_interactions for each in line] == [1, 1, 2, 0]
    assert line[-1].snapshot_id == ""
    assert [each.policy_version for each in ancestors(FORKED, 1, lambda path: Counter())] == [1]
    with pytest.raises(ConfigError, match="no cycle of this run made v9; there are: v2, v3"):
        ancestors(FORKED, 9, lambda path: Counter())


def test_lineage_of_a_user_counts_their_interactions_in_each_snapshot():
    found = trace_lineage(FORKED, NOTHING, {"a", "b"})
    assert [(each.cycle, each.num_interactions, each.trained) for each in found.snapshots] == [
        (1, 2, True),
        (3, 1, True),
        (4, 1, False),
        (5, 1, True),
    ]
    assert [each.policy_version for each in found.learned] == [2, 3, 4, 6]


def test_the_history_of_a_new_run_is_empty(tmp_path):
    assert read_run_history(Layout(tmp_path)) == RunHistory(updates=(), released=frozenset(), served=None)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Ann's interactions made v2; hers and Bob's v3, which is rejected; v2 is served."""
    layout = Layout(tmp_path)
    said = people(layout, ("ann", "bob"))
    ann, bob = (interactions_of(said[name]) for name in ("ann", "bob"))
    store(layout, [each for turns in said.values() for each in turns], [*ann, *bob])
    write_json(layout.release(1), builders.release(tmp_path / "base"))
    finished_cycle(layout, 1, ann, parent=1)
    finished_cycle(layout, 2, [bob[0], *ann], parent=2, verdict=Verdict.REJECT)
    return layout


def job(layout: Layout, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "jobs/lineage.py", "--set", f"root={layout.root}", *arguments]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)


def answer(layout: Layout, *arguments: str) -> dict | list:
    done = job(layout, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_job_answers_by_user_by_turn_and_by_release(layout):
    by_user = answer(layout, "--user", "bob")
    assert (by_user["num_turns"], by_user["num_interactions"]) == (3, 2)
    assert [(each["cycle"], each["num_interactions"]) for each in by_user["snapshots"]] == [(2, 1)]
    assert [(each["policy_version"], each["released"]) for each in by_user["learned"]] == [(3, False)]
    by_turn = answer(layout, "--turn", "a-1")
    # Its answer with the reaction to it, and the answer that it reacts to.
    assert (by_turn["num_turns"], by_turn["num_interactions"]) == (1, 2)
    assert [each["policy_version"] for each in by_turn["learned"]] == [2, 3]
    line = answer(layout, "--release", "v3")
    assert [(each["policy_version"], each["verdict"]) for each in line] == [(3, "REJECT"), (2, "PROMOTE"), (1, None)]
    shares = [(each["user"], each["num_interactions"]) for each in line[0]["users"]]
    assert shares == [(pseudonym(layout, "ann"), 2), (pseudonym(layout, "bob"), 1)]
    assert [each["served"] for each in line] == [False, True, False]


def test_the_job_prints_trees(layout):
    shown = job(layout, "--user", "ann").stdout
    assert "3 turns, 0 feedback, 2 interactions in the tables" in shown
    assert "v2 of v1: PROMOTE, served" in shown
    shown = job(layout, "--release", "2").stdout
    assert "v2: cycle 1 learned from c0001, 2 interactions of 1 users" in shown
    assert "v1: the base policy" in shown


def test_the_job_refuses_none_and_several_of_its_questions(layout):
    for arguments in ((), ("--user", "ann", "--turn", "a-1"), ("--release", "newest")):
        refused = job(layout, *arguments)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
