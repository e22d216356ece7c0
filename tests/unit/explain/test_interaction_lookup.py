"""Which interaction a turn's id names, and which policy is asked about it."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.config import Run, parse_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.explain.interaction_lookup import champion, find_interaction, newest_interactions, policy_that_answered
from sdpo_ray.io.files import sealed_directory, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Fingerprint, Interaction, Release
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import turn


def interaction(name: str, *, at_s: float = 1.0) -> Interaction:
    return Interaction(
        interaction_id=name,
        turn=turn(name),
        follow_up="Shorter please.",
        follow_up_turn_id=f"{name}-next",
        follow_up_at_s=at_s,
        conversation=name,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return parse_run({"root": str(tmp_path / "run")})


@pytest.fixture
def filled(run: Run) -> Layout:
    """Three interactions, and a turn that nobody has answered."""
    layout = run.layout
    said = [interaction("a", at_s=5.0), interaction("b", at_s=7.0), interaction("c", at_s=6.0)]
    Table.interactions(layout).append(interactions_to_arrow(said), {})
    Table.turns(layout).append(turns_to_arrow([each.turn for each in said] + [turn("last")]), {})
    return layout


def test_an_interaction_is_found_by_the_id_of_its_answered_turn(filled: Layout):
    assert find_interaction(filled, "b") == interaction("b", at_s=7.0)


def test_a_comment_is_found_by_its_own_id_and_by_the_turns_where_nobody_reacted_in_the_chat(filled: Layout):
    on_last = replace(interaction("f1", at_s=9.0), turn=turn("last"), follow_up_turn_id="f1")
    on_b = replace(interaction("f2", at_s=1.0), turn=turn("b"), follow_up_turn_id="f2")
    Table.interactions(filled).append(interactions_to_arrow([on_last, on_b]), {})
    assert find_interaction(filled, "f1") == find_interaction(filled, "last") == on_last
    assert find_interaction(filled, "f2") == on_b
    assert find_interaction(filled, "b") == interaction("b", at_s=7.0)


def test_a_turn_without_a_follow_up_is_told_from_one_that_is_not_there(filled: Layout):
    with pytest.raises(ConfigError, match="turn last has no follow-up"):
        find_interaction(filled, "last")
    with pytest.raises(ConfigError, match="no turn nobody in the tables"):
        find_interaction(filled, "nobody")


def test_the_newest_come_first(filled: Layout):
    assert [each.interaction_id for each in newest_interactions(filled, 2)] == ["b", "c"]


def test_looking_at_a_run_that_is_not_there_says_so_and_makes_nothing(run: Run):
    layout = run.layout
    for look in (lambda: find_interaction(layout, "a"), lambda: newest_interactions(layout, 5)):
        with pytest.raises(ConfigError):
            look()
    assert not layout.root.exists()


def release(run: Run, version: int, path: Path) -> Release:
    made = Release(
        policy_version=version,
        path=str(path),
        previous_version=None,
        fingerprint=Fingerprint(token_ids=(), logprobs=()),
    )
    write_json(run.layout.release(version), made)
    return made


def test_the_policy_that_answered_is_asked_while_it_is_on_disk(run: Run, tmp_path: Path):
    with sealed_directory(tmp_path / "elsewhere"):
        pass
    release(run, 2, tmp_path / "elsewhere")
    assert policy_that_answered(run, 2) == (tmp_path / "elsewhere", "v2, which made the answer")
    candidate = run.layout.candidate(3)
    with sealed_directory(candidate):
        pass
    assert policy_that_answered(run, 3) == (candidate, "v3, which made the answer")
    assert policy_that_answered(run, BASE_VERSION) == (run.base, "v1, which made the answer")


def test_the_champion_is_asked_where_it_is_gone_and_the_words_say_which(run: Run, tmp_path: Path):
    path, words = policy_that_answered(run, 4)
    assert (path, words.split(";")[0]) == (run.base, "the run's base, since nothing is released yet")
    served = release(run, 5, tmp_path / "v5")
    write_json(run.layout.release_pointer, served)
    assert champion(run) == (tmp_path / "v5", "v5, the champion")
    release(run, 4, tmp_path / "deleted")
    path, words = policy_that_answered(run, 4)
    assert path == tmp_path / "v5"
    assert words == "v5, the champion; v4, which made the answer, is no longer on disk"
