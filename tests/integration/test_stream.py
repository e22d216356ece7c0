import random
from collections import Counter
from dataclasses import replace

import pytest
from conversations import chat, dialogue, turn

from sdpo_ray.capture.journal import Journal
from sdpo_ray.capture.segments import SegmentLog
from sdpo_ray.config import Curate
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.curate.sessionize import conversation
from sdpo_ray.curate.store import Table
from sdpo_ray.curate.stream import Curator, Progress
from sdpo_ray.errors import DataError
from sdpo_ray.records import Consent, Interaction, Turn
from sdpo_ray.storage import Layout, is_ready
from sdpo_ray.tables import interactions_from_arrow, read_interactions, rows_digest

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path / "a run")


def curator(layout: Layout, **config) -> Curator:
    return Curator(layout, Curate(**config), SegmentLog(layout.journal))


def capture(layout: Layout, *turns: Turn) -> None:
    journal = Journal(layout.journal, segment_bytes=1 << 20)
    for durable in [journal.append(each) for each in turns]:
        durable.result(timeout=10)
    journal.close()


def stored(layout: Layout) -> dict[str, Interaction]:
    found = interactions_from_arrow(Table.interactions(layout).read())
    assert len({each.interaction_id for each in found}) == len(found)
    return {each.interaction_id: each for each in found}


def test_new_turns_become_interactions_and_what_comes_to_nothing_is_counted(layout):
    ann, bob, eve = dialogue("ann", follow_ups=2), dialogue("bob"), dialogue("eve")
    secret = [replace(each, consent=Consent.NONE) for each in eve]
    capture(layout, *ann, *bob, *secret, replace(bob[0], response="twice"))
    progress = curator(layout).advance()
    assert progress == Progress(
        turns_shipped=7,
        turns_total=7,
        interactions_admitted=3,
        interactions_total=3,
        refused=Counter(duplicate_turn=1, no_consent=1),
    )
    found = stored(layout)
    assert found.keys() == {"ann-0", "ann-1", "bob-0"}
    assert found["ann-1"] == Interaction(
        interaction_id="ann-1",
        turn=ann[1],
        follow_up="shorter, ann says for the 2. time",
        follow_up_turn_id="ann-2",
        follow_up_at_s=120.0,
        conversation=conversation(ann[0]),
    )


def test_an_answer_and_its_follow_up_are_paired_whichever_comes_first(layout):
    (first, second), (third, fourth) = dialogue("ann"), dialogue("bob")
    stage = curator(layout)
    capture(layout, first, fourth)
    assert stage.advance().interactions_total == 0
    capture(layout, second, third)
    assert stage.advance().interactions_admitted == 2
    assert stage.advance() == Progress(
        turns_shipped=0, turns_total=4, interactions_admitted=0, interactions_total=2, refused=Counter()
    )
    assert stored(layout).keys() == {"ann-0", "bob-0"}


def test_a_second_reaction_in_other_words_leaves_the_first_one_standing(layout):
    first, second = dialogue("ann")
    stage = curator(layout)
    capture(layout, first, second)
    stage.advance()
    edited = (*second.messages[:-1], *chat("no, longer"))
    capture(layout, replace(second, turn_id="edit", messages=edited), replace(second, turn_id="retry"))
    assert stage.advance().refused == Counter(branch=1, duplicate_follow_up=1)
    assert stored(layout)["ann-0"].follow_up_turn_id == "ann-1"


def test_town_life_in_micro_batches_gives_what_one_batch_gives(layout, tmp_path):
    people = [dialogue(f"p{n}", follow_ups=3, user=f"u{n % 3}") for n in range(40)]
    turns = [each for person in people for each in person]
    random.Random(5).shuffle(turns)
    at_once = Layout(tmp_path / "at once")
    capture(at_once, *turns)
    curator(at_once).advance()
    stage = curator(layout)
    for start in range(0, len(turns), 40):
        capture(layout, *turns[start : start + 40])
        stage.advance()
    assert stored(layout) == stored(at_once)
    assert len(stored(layout)) == 120


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["turns", "interactions", "sync"])
def test_a_stage_killed_between_steps_goes_on_without_loss_or_repetition(layout, monkeypatch, step):
    capture(layout, *dialogue("ann", follow_ups=3))
    append, sync = Table.append, Table.sync

    def die_at(table: Table, name: str) -> None:
        if table._path.name == name:
            raise Killed

    def append_or_die(self: Table, *what) -> bool:
        die_at(self, step)
        return append(self, *what)

    def sync_or_die(self: Table) -> None:
        sync(self)
        if step == "sync":
            die_at(self, "interactions")

    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", append_or_die)
        patch.setattr(Table, "sync", sync_or_die)
        with pytest.raises(Killed):
            curator(layout).advance()
    progress = curator(layout).advance()
    assert (progress.turns_total, progress.interactions_total) == (4, 3)
    assert stored(layout).keys() == {"ann-0", "ann-1", "ann-2"}


def test_of_two_curators_that_pair_the_same_turns_one_commits(layout, monkeypatch):
    capture(layout, *dialogue("ann", follow_ups=3))
    append, overtaken = Table.append, []

    def after_another(self: Table, *what) -> bool:
        if self._path.name == "interactions" and not overtaken:
            overtaken.append(True)
            assert curator(layout).advance().interactions_admitted == 3
        return append(self, *what)

    monkeypatch.setattr(Table, "append", after_another)
    assert curator(layout).advance().interactions_admitted == 0
    assert len(stored(layout)) == 3


def test_a_snapshot_is_drawn_once_and_read_back_after(layout):
    capture(layout, *(each for n in range(30) for each in dialogue(f"p{n}", at_s=100.0 + n)))
    stage = curator(layout, snapshot_size=10, held_out=0.3)
    stage.advance()
    snapshot = stage.draw(1, seed=7, champion_version=3)
    drawn = read_interactions(layout.snapshot(1))
    assert is_ready(layout.snapshot(1))
    assert tuple(each.interaction_id for each in drawn) == snapshot.interaction_ids
    assert len(set(snapshot.interaction_ids)) == 10
    assert snapshot.digest == rows_digest(drawn)
    assert snapshot.path == str(layout.snapshot(1))
    assert snapshot.table_version == Table.interactions(layout).version
    assert snapshot.last_interaction_at_s == max(each.follow_up_at_s for each in drawn)
    assert not any(is_held_out(each.conversation, 0.3) for each in drawn)
    held_out = [stored(layout)[each] for each in snapshot.held_out_ids]
    assert held_out
    assert all(is_held_out(each.conversation, 0.3) for each in held_out)
    capture(layout, *dialogue("late", at_s=500.0))
    stage.advance()
    assert stage.draw(1, seed=8, champion_version=3) == snapshot


def test_the_same_table_and_seed_give_the_same_snapshot_anywhere(layout, tmp_path):
    turns = [each for n in range(30) for each in dialogue(f"p{n}", at_s=100.0 + n)]
    digests = set()
    for root in (layout, Layout(tmp_path / "elsewhere")):
        capture(root, *turns)
        stage = curator(root, snapshot_size=10)
        stage.advance()
        digests.add(stage.draw(4, seed=7, champion_version=3).digest)
        assert stage.draw(5, seed=8, champion_version=3).digest not in digests
    assert len(digests) == 1


def test_new_trainable_interactions_are_counted_since_the_last_draw(layout):
    stage = curator(layout, held_out=0.0, max_age_versions=1)
    assert stage.count_new(since=0, champion_version=3) == 0
    capture(layout, *dialogue("ann", follow_ups=3))
    stage.advance()
    assert stage.count_new(since=0, champion_version=3) == 3
    assert stage.count_new(since=0, champion_version=5) == 0
    drawn = stage.draw(1, seed=0, champion_version=3)
    assert stage.count_new(since=drawn.table_version, champion_version=3) == 0
    capture(layout, *dialogue("bob"))
    stage.advance()
    assert stage.count_new(since=drawn.table_version, champion_version=3) == 1


def test_a_draw_from_nothing_is_refused_and_leaves_nothing(layout):
    with pytest.raises(DataError, match="nothing to draw: 0 of 0"):
        curator(layout).draw(1, seed=0, champion_version=0)
    assert not layout.snapshot(1).exists()


def test_anonymous_strangers_with_the_same_words_are_counted_and_not_learned_from(layout):
    first, second = dialogue("ann")
    stranger = replace(first, turn_id="stranger", started_at_s=105.0, finished_at_s=106.0)
    capture(layout, first, stranger, second)
    progress = curator(layout).advance()
    assert (progress.interactions_total, progress.refused) == (0, Counter(ambiguous=1))


def test_a_lone_opening_needs_no_ray_and_is_settled(layout, monkeypatch):
    import ray.data

    monkeypatch.setattr(ray.data, "from_arrow", None)
    capture(layout, turn("t0"))
    stage = curator(layout)
    assert stage.advance().turns_shipped == 1
    assert Table.interactions(layout).position("turns") == Table.turns(layout).version
