from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.config import Curate
from sdpo_ray.curate.sampling import LightRow, count_trainable, draw, is_held_out


def light(count: int, *, version: int = 0) -> list[LightRow]:
    """Interactions of as many conversations, the last one newest."""
    return [
        LightRow(interaction_id=f"i{n:04d}", follow_up_at_s=float(n), policy_version=version, conversation=f"c{n}")
        for n in range(count)
    ]


def config(**changes) -> Curate:
    return Curate(**({"snapshot_size": 4, "recency_half_life": 2, "max_age_versions": 8, "held_out": 0.0} | changes))


def test_nothing_is_drawn_twice_and_never_more_than_there_is():
    plan = draw(light(3), champion_version=0, seed=1, config=config())
    assert sorted(plan.interaction_ids) == ["i0000", "i0001", "i0002"]


@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_the_same_rows_and_seed_give_the_same_plan_whatever_their_order(random, seed: int):
    rows = light(40)
    expected = draw(rows, champion_version=0, seed=seed, config=config(held_out=0.2))
    random.shuffle(rows)
    assert draw(rows, champion_version=0, seed=seed, config=config(held_out=0.2)) == expected
    assert len(set(expected.interaction_ids)) == 4


def test_another_seed_gives_another_draw_and_another_order():
    plans = {draw(light(40), champion_version=0, seed=seed, config=config()).interaction_ids for seed in range(20)}
    assert len(plans) == 20
    orders = {draw(light(4), champion_version=0, seed=seed, config=config()).interaction_ids for seed in range(200)}
    assert orders == set(permutations(["i0000", "i0001", "i0002", "i0003"]))


def test_the_first_one_drawn_falls_to_each_in_proportion_to_its_weight():
    # Half-life 2, newest first: weights 1, 2^-1/2, 2^-1, 2^-3/2; their sum is 2.5606602.
    expected = {"i0003": 0.390524, "i0002": 0.276142, "i0001": 0.195262, "i0000": 0.138071}
    draws = 20_000
    one = config(snapshot_size=1)
    seen = Counter(
        draw(light(4), champion_version=0, seed=seed, config=one).interaction_ids[0] for seed in range(draws)
    )
    for name, probability in expected.items():
        # Four standard deviations of a share of 20,000 draws are at most 0.0138.
        assert seen[name] / draws == pytest.approx(probability, abs=0.0138)


def test_two_of_three_are_drawn_as_one_after_the_other_without_replacement():
    # Half-life 1: weights 4/7, 2/7, 1/7. P(a left out) = P(b then c) + P(c then b) = 2/7 * 1/5 + 1/7 * 2/6 = 11/105.
    two = config(snapshot_size=2, recency_half_life=1)
    draws = 20_000
    left_out = Counter(
        (
            {"i0000", "i0001", "i0002"} - set(draw(light(3), champion_version=0, seed=seed, config=two).interaction_ids)
        ).pop()
        for seed in range(draws)
    )
    assert left_out["i0002"] / draws == pytest.approx(11 / 105, abs=0.0138)
    # P(b left out) = 4/7 * 1/3 + 1/7 * 4/6 = 2/7, and P(c left out) = 4/7 * 2/3 + 2/7 * 4/5 = 64/105.
    assert left_out["i0001"] / draws == pytest.approx(2 / 7, abs=0.0138)
    assert left_out["i0000"] / draws == pytest.approx(64 / 105, abs=0.0138)


def test_the_order_of_training_has_nothing_to_do_with_age():
    draws = 20_000
    first = Counter(
        draw(light(3), champion_version=0, seed=seed, config=config(recency_half_life=1)).interaction_ids[0]
        for seed in range(draws)
    )
    assert [first[f"i{n:04d}"] / draws for n in range(3)] == pytest.approx([1 / 3] * 3, abs=0.0138)


def test_rows_too_old_for_a_floating_point_weight_are_still_ordered():
    rows = light(5000)
    plan = draw(rows, champion_version=0, seed=0, config=config(snapshot_size=4999, recency_half_life=1))
    assert len(set(plan.interaction_ids)) == 4999
    assert "i4999" in plan.interaction_ids


def test_answers_of_versions_too_old_are_not_drawn_and_those_of_a_rolled_back_one_are():
    rows = [
        LightRow(interaction_id=f"v{version}", follow_up_at_s=0.0, policy_version=version, conversation=f"c{version}")
        for version in (1, 2, 5, 6)
    ]
    plan = draw(rows, champion_version=5, seed=0, config=config(max_age_versions=3))
    assert sorted(plan.interaction_ids) == ["v2", "v5", "v6"]
    assert count_trainable(rows, champion_version=5, config=config(max_age_versions=3)) == 3


def test_a_held_out_conversation_is_never_trained_on_by_any_seed():
    rows = [
        LightRow(
            interaction_id=f"i{n}", follow_up_at_s=float(n), policy_version=0, conversation=f"conversation {n % 50}"
        )
        for n in range(200)
    ]
    share = config(held_out=0.3, snapshot_size=200)
    held_out = {row.interaction_id for row in rows if is_held_out(row.conversation, 0.3)}
    for seed in range(20):
        plan = draw(rows, champion_version=0, seed=seed, config=share)
        assert set(plan.held_out_ids) == held_out
        assert set(plan.interaction_ids) == {row.interaction_id for row in rows} - held_out
    assert count_trainable(rows, champion_version=0, config=share) == 200 - len(held_out)


def test_the_held_out_share_of_conversations_is_the_one_asked_for():
    count = sum(is_held_out(f"conversation {n}", 0.1) for n in range(20_000))
    # Four standard deviations of a share of 0.1 in 20,000 are 0.0085.
    assert count / 20_000 == pytest.approx(0.1, abs=0.0085)
    assert not any(is_held_out(f"conversation {n}", 0.0) for n in range(1000))


def test_a_larger_share_holds_out_what_a_smaller_one_did():
    for n in range(1000):
        assert is_held_out(f"c{n}", 0.5) or not is_held_out(f"c{n}", 0.2)


def test_the_rule_is_told_in_numbers():
    plan = draw(light(10), champion_version=2, seed=0, config=config())
    assert plan.rule == (
        "4 of 10 trainable interactions without replacement, weight halved by every 2 newer ones; "
        "answers at most 8 versions older than v2; 0 of conversations held out (0 interactions)"
    )


def test_nothing_gives_an_empty_plan():
    assert draw([], champion_version=0, seed=0, config=config()).interaction_ids == ()
