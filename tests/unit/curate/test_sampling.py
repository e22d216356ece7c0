"""Sampling: which rows are drawn, in which proportions, and which never."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.sampling import LIGHT_COLUMNS, NotDrawn, Plan, count_trainable, is_held_out
from sdpo_ray.curate.sampling import draw as draw_at
from sdpo_ray.tables.arrow_schemas import split_of

NOW_S = 1_000_000.0
DAY_S = 86_400.0
DRAWS = 8_000
FOUR_SIGMA = 0.0224
"""Four standard deviations of a share of one half in 8,000 draws; other shares vary less."""
TYPES = (pa.string(), pa.float64(), pa.int32(), pa.int64(), pa.string(), pa.string(), pa.int64())
SCHEMA = pa.schema(list(zip(LIGHT_COLUMNS, TYPES, strict=True)))

Row = Mapping[str, object]


def row(number: int, **changes: object) -> Row:
    """Interaction `i0007` with its own conversation, batch and second; the highest number is the newest."""
    fields: dict[str, object] = {
        "interaction_id": f"i{number:04d}",
        "follow_up_at_s": NOW_S - 1000 + number,
        "policy_version": 0,
        "split": split_of(f"c{number}"),
        "tenant": "t",
        "user": "",
        "batch": number + 1,
    }
    return fields | changes


def table(rows: Sequence[Row], *, chunk: int = 7) -> pa.Table:
    """The rows in several chunks, as a table of many files returns them."""
    whole = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    return pa.Table.from_batches(whole.to_batches(max_chunksize=chunk), schema=SCHEMA)


def light(count: int) -> list[Row]:
    return [row(number) for number in range(count)]


def config(**changes: object) -> CurateConfig:
    plain = {"snapshot_size": 4, "recency_half_life": 2, "max_age_versions": 8, "held_out": 0.0, "max_user_share": 1.0}
    return CurateConfig.model_validate(plain | changes)


def draw(
    rows: Sequence[Row], *, seed: int = 0, champion_version: int = 0, last_batch: int = 0, **changes: object
) -> Plan:
    return draw_at(
        table(rows),
        champion_version=champion_version,
        seed=seed,
        now_s=NOW_S,
        last_batch=last_batch,
        config=config(**changes),
    )


def trainable(rows: Sequence[Row], *, champion_version: int = 0, **changes: object) -> int:
    return count_trainable(table(rows), champion_version=champion_version, now_s=NOW_S, config=config(**changes))


def shares(rows: Sequence[Row], **changes: object) -> dict[str, float]:
    """How often each interaction is drawn, over many seeds."""
    light_rows, setting = table(rows), config(**changes)
    seen = Counter(
        name
        for seed in range(DRAWS)
        for name in draw_at(
            light_rows, champion_version=0, seed=seed, now_s=NOW_S, last_batch=0, config=setting
        ).interaction_ids
    )
    return {str(each["interaction_id"]): seen[str(each["interaction_id"])] / DRAWS for each in rows}


def not_drawn(plan: Plan) -> dict[str, int]:
    return {each.reason: each.n for each in plan.not_drawn}


def test_no_interaction_is_drawn_twice():
    assert sorted(draw(light(3), seed=1).interaction_ids) == ["i0000", "i0001", "i0002"]


@given(st.randoms(use_true_random=False), st.integers(0, 2**32), st.booleans())
def test_the_same_rows_and_seed_give_the_same_plan_whatever_their_order(random, seed: int, tied: bool):
    rows = [row(n, follow_up_at_s=NOW_S - (0 if tied else n // 3), user=f"u{n % 5}") for n in range(40)]
    limits = {"held_out": 0.2, "max_user_share": 0.3, "replay_share": 0.5}
    expected = draw(rows, seed=seed, last_batch=20, **limits)
    random.shuffle(rows)
    assert draw(rows, seed=seed, last_batch=20, **limits) == expected
    assert len(set(expected.interaction_ids)) == 4


def test_of_the_same_second_the_id_tells_which_is_newer():
    rows = [row(n, follow_up_at_s=NOW_S) for n in range(6)]
    # Half-life 1, all u equal: the weights are 1, 1/2, 1/4 and so on, in the order of the ids.
    first = Counter(
        draw(rows, seed=seed, snapshot_size=1, recency_half_life=1).interaction_ids[0] for seed in range(4000)
    )
    assert [name for name, _ in first.most_common(4)] == ["i0000", "i0001", "i0002", "i0003"]


def test_another_seed_gives_another_draw_and_another_order():
    assert len({draw(light(40), seed=seed).interaction_ids for seed in range(20)}) == 20
    orders = {draw(light(4), seed=seed).interaction_ids for seed in range(200)}
    assert orders == set(permutations(["i0000", "i0001", "i0002", "i0003"]))


def test_the_first_one_drawn_falls_to_each_in_proportion_to_its_weight():
    # Half-life 2, newest first: weights 1, 2^-1/2, 2^-1, 2^-3/2; their sum is 2.5606602.
    assert shares(light(4), snapshot_size=1) == pytest.approx(
        {"i0003": 0.390524, "i0002": 0.276142, "i0001": 0.195262, "i0000": 0.138071}, abs=FOUR_SIGMA
    )


def test_two_of_three_are_drawn_as_one_after_the_other_without_replacement():
    # Half-life 1: weights 4/7, 2/7, 1/7. P(a left out) = P(b then c) + P(c then b) = 2/7 * 1/5 + 1/7 * 2/6 = 11/105;
    # P(b left out) = 4/7 * 1/3 + 1/7 * 4/6 = 2/7, and P(c left out) = 4/7 * 2/3 + 2/7 * 4/5 = 64/105.
    assert shares(light(3), snapshot_size=2, recency_half_life=1) == pytest.approx(
        {"i0002": 1 - 11 / 105, "i0001": 1 - 2 / 7, "i0000": 1 - 64 / 105}, abs=FOUR_SIGMA
    )


def inclusion(people: Sequence[str], weights: Sequence[float], *, size: int, cap: int) -> list[float]:
    """P(each is drawn) for sequential draws in proportion to weight, without users that have reached the cap."""

    @cache
    def after(taken: tuple[int, ...]) -> tuple[float, ...]:
        counts = Counter(people[i] for i in taken)
        open_ = [i for i in range(len(people)) if i not in taken and (not people[i] or counts[people[i]] < cap)]
        if len(taken) == size or not open_:
            return tuple(float(i in taken) for i in range(len(people)))
        total = sum(weights[i] for i in open_)
        branches = [(weights[i] / total, after(tuple(sorted((*taken, i))))) for i in open_]
        return tuple(sum(p * each[i] for p, each in branches) for i in range(len(people)))

    return list(after(()))


def test_a_draw_with_a_user_cap_is_the_draw_in_which_full_users_drop_out():
    people = ["a", "a", "", "a", "b", ""]
    rows = [row(5 - n, user=name) for n, name in enumerate(people)]
    exact = inclusion(people, [2 ** (-n / 2) for n in range(6)], size=3, cap=1)
    assert exact != pytest.approx(inclusion(people, [2 ** (-n / 2) for n in range(6)], size=3, cap=9), abs=0.05)
    found = shares(rows, snapshot_size=3, max_user_share=0.34)
    assert [found[f"i{5 - n:04d}"] for n in range(6)] == pytest.approx(exact, abs=FOUR_SIGMA)


def test_a_tenant_with_a_share_is_drawn_from_as_if_it_were_alone():
    rows = [row(5 - n, tenant=name) for n, name in enumerate("ababba")]
    found = shares(rows, snapshot_size=2, tenant_mix={"a": 0.5})
    for tenant, places in (("a", [0, 2, 5]), ("b", [1, 3, 4])):
        weights = [2 ** (-n / 2) for n in places]
        expected = [weight / sum(weights) for weight in weights]
        assert [found[f"i{5 - n:04d}"] for n in places] == pytest.approx(expected, abs=FOUR_SIGMA), tenant


def test_the_order_of_training_has_nothing_to_do_with_age():
    first = Counter(draw(light(3), seed=seed, recency_half_life=1).interaction_ids[0] for seed in range(DRAWS))
    assert [first[f"i{n:04d}"] / DRAWS for n in range(3)] == pytest.approx([1 / 3] * 3, abs=FOUR_SIGMA)


def test_rows_too_old_for_a_floating_point_weight_are_still_ordered():
    rows = [row(n, follow_up_at_s=NOW_S - 5000 + n) for n in range(5000)]
    plan = draw(rows, snapshot_size=4999, recency_half_life=1)
    assert len(set(plan.interaction_ids)) == 4999
    assert "i4999" in plan.interaction_ids


def test_answers_of_versions_too_far_from_the_champion_are_not_drawn_be_they_older_or_rolled_back():
    rows = [row(version, policy_version=version) for version in (1, 2, 5, 6, 9)]
    plan = draw(rows, champion_version=5, max_age_versions=3)
    assert sorted(plan.interaction_ids) == ["i0002", "i0005", "i0006"]
    assert not_drawn(plan) == {"stale": 2}
    assert trainable(rows, champion_version=5, max_age_versions=3) == 3


def test_follow_ups_of_too_many_days_ago_are_not_drawn():
    rows = [row(n, follow_up_at_s=NOW_S - age * DAY_S) for n, age in enumerate((0, 2.999, 3.001, 90))]
    plan = draw(rows, max_age_days=3)
    assert sorted(plan.interaction_ids) == ["i0000", "i0001"]
    assert not_drawn(plan) == {"too_old": 2}
    assert trainable(rows, max_age_days=3) == 2


def test_a_held_out_conversation_is_never_trained_on_by_any_seed():
    rows = [row(n, split=split_of(f"conversation {n % 50}")) for n in range(200)]
    held_out = {f"i{n:04d}" for n in range(200) if is_held_out(f"conversation {n % 50}", 0.3)}
    assert held_out
    for seed in range(20):
        plan = draw(rows, seed=seed, held_out=0.3, snapshot_size=200)
        assert set(plan.held_out_ids) == held_out
        assert set(plan.interaction_ids) == {f"i{n:04d}" for n in range(200)} - held_out
    assert not_drawn(plan) == {"held_out": len(held_out)}
    assert trainable(rows, held_out=0.3) == 200 - len(held_out)


def test_the_newest_held_out_interactions_are_named_newest_first():
    rows = [row(n, split=0) for n in range(9)] + [row(9)]
    assert draw(rows, held_out=1e-9).held_out_ids == ("i0008", "i0007", "i0006", "i0005")


def test_the_held_out_share_of_conversations_is_the_configured_one():
    count = sum(is_held_out(f"conversation {n}", 0.1) for n in range(20_000))
    # Four standard deviations of a share of 0.1 in 20,000 are 0.0085.
    assert count / 20_000 == pytest.approx(0.1, abs=0.0085)
    assert not any(is_held_out(f"conversation {n}", 0.0) for n in range(1000))


def test_a_larger_share_holds_out_what_a_smaller_one_did():
    for n in range(1000):
        assert is_held_out(f"c{n}", 0.5) or not is_held_out(f"c{n}", 0.2)


def test_a_named_user_is_held_to_the_cap_and_anonymous_users_are_not():
    rows = [row(n, user="k1.ada") for n in range(10, 30)] + [row(n, user="k1.bob") for n in range(8)]
    plan = draw(rows, snapshot_size=10, max_user_share=0.3)
    taken = Counter("ada" if name >= "i0010" else "bob" for name in plan.interaction_ids)
    assert taken == {"ada": 3, "bob": 3}
    assert not_drawn(plan) == {"user_cap": 22}
    anonymous = draw([row(n) for n in range(20)], snapshot_size=10, max_user_share=0.3)
    assert len(anonymous.interaction_ids) == 10
    assert not_drawn(anonymous) == {"left_over": 10}


def test_the_same_pseudonym_under_two_tenants_is_two_users():
    rows = [row(n, user="k1.ada", tenant=f"t{n % 2}") for n in range(20)]
    assert len(draw(rows, snapshot_size=4, max_user_share=0.25).interaction_ids) == 2


def test_a_small_cap_leaves_every_user_one():
    rows = [row(n, user=f"k1.{n % 3}") for n in range(30)]
    assert len(draw(rows, max_user_share=0.01).interaction_ids) == 3


def test_what_a_tenant_cannot_fill_goes_to_the_others_and_the_rule_says_so():
    rows = [row(n, tenant="a" if n < 3 else "b") for n in range(30)]
    plan = draw(rows, snapshot_size=10, tenant_mix={"a": 0.5, "c": 0.2})
    assert len(plan.interaction_ids) == 10
    assert sum(name < "i0003" for name in plan.interaction_ids) == 3
    assert (
        "by tenant a 3 for 5, c 0 for 2, others 7 for 3 (tenants without more rows left places to the others)"
        in plan.rule
    )


def test_a_share_is_kept_for_what_an_earlier_draw_could_have_taken():
    rows = light(200)
    for seed in range(50):
        taken = draw(rows, seed=seed, last_batch=100, snapshot_size=20, replay_share=0.25).interaction_ids
        assert sum(name < "i0100" for name in taken) == 5
    # By weight alone old ones would never be drawn: fifty half-lives lie between.
    assert all(name >= "i0100" for name in draw(rows, last_batch=100, snapshot_size=20).interaction_ids)


@pytest.mark.parametrize(("last_batch", "old"), [(0, 0), (2, 2), (199, 19), (200, 20)])
def test_an_old_or_new_half_with_too_few_rows_leaves_its_places_to_the_other(last_batch: int, old: int):
    plan = draw(light(200), last_batch=last_batch, snapshot_size=20, replay_share=0.25)
    assert len(plan.interaction_ids) == 20
    assert sum(name < f"i{last_batch:04d}" for name in plan.interaction_ids) == old
    assert f"{old} for 5 that an earlier draw could have taken" in plan.rule


@settings(max_examples=200)
@given(st.data())
def test_caps_and_mix_hold_nothing_held_out_is_drawn_and_everything_is_accounted_for(data: st.DataObject):
    count = data.draw(st.integers(0, 60))
    pick = data.draw(st.randoms(use_true_random=False))
    rows = [
        row(
            n,
            follow_up_at_s=NOW_S - pick.choice((0, 5, 5, 9 * DAY_S, 11 * DAY_S)),
            policy_version=pick.randrange(4),
            split=pick.randrange(2**32),
            tenant=pick.choice("abcd"),
            user=pick.choice(("", "u", "v", "w")),
            batch=pick.randrange(1, 6),
        )
        for n in range(count)
    ]
    size = data.draw(st.integers(1, 20))
    mix = data.draw(st.sampled_from([{}, {"a": 0.3}, {"a": 0.25, "b": 0.75}, {"b": 0.1, "z": 0.4}]))
    limits = {
        "snapshot_size": size,
        "max_user_share": data.draw(st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0])),
        "tenant_mix": mix,
        "replay_share": data.draw(st.sampled_from([0.0, 0.3, 0.9])),
        "max_age_days": 10,
        "max_age_versions": 2,
        "held_out": 0.2,
    }
    last_batch = data.draw(st.integers(0, 6))
    seed = data.draw(st.integers(0, 2**64))
    plan = draw(rows, seed=seed, champion_version=3, last_batch=last_batch, **limits)

    by_id = {str(each["interaction_id"]): each for each in rows}
    taken = [by_id[name] for name in plan.interaction_ids]
    could = [
        each
        for each in rows
        if 3 - int(str(each["policy_version"])) <= 2
        and NOW_S - float(str(each["follow_up_at_s"])) <= 10 * DAY_S
        and int(str(each["split"])) >= 0.2 * 2**32
    ]
    assert len(set(plan.interaction_ids)) == len(taken) <= size
    assert all(each in could for each in taken)
    assert not set(plan.held_out_ids) & {str(each["interaction_id"]) for each in could}
    assert trainable(rows, champion_version=3, **limits) == len(could)
    assert len(taken) + sum(not_drawn(plan).values()) == count

    cap = max(1, int(limits["max_user_share"] * size))  # type: ignore[operator]
    people = Counter((each["tenant"], each["user"]) for each in taken if each["user"])
    assert max(people.values(), default=0) <= cap
    # Rows are left over only when the snapshot is full.
    if NotDrawn.LEFT_OVER in not_drawn(plan):
        assert len(taken) == size

    usable = Counter[object]()
    for (tenant, user), n in Counter((each["tenant"], each["user"]) for each in could).items():
        usable[tenant] += min(n, cap) if user else n
    for tenant, share in mix.items():
        if usable[tenant] >= share * size + 1:
            assert Counter(each["tenant"] for each in taken)[tenant] > share * size - 1
    if mix and sum(mix.values()) == 1 and all(usable[tenant] >= share * size + 1 for tenant, share in mix.items()):
        for tenant, share in mix.items():
            assert abs(Counter(each["tenant"] for each in taken)[tenant] - share * size) < 1

    if not mix and limits["max_user_share"] == 1.0:
        old = [each for each in could if int(str(each["batch"])) <= last_batch]
        quota = np.floor(limits["replay_share"] * size)  # type: ignore[operator]
        assert sum(each in old for each in taken) >= min(len(old), quota)


def test_the_rule_states_its_numbers():
    assert draw(light(10), champion_version=2).rule == (
        "4 of 10 trainable interactions without replacement, weight halved by every 2 newer ones; "
        "answers at most 8 versions older than v2, follow-ups at most 90 days old; "
        "0 of conversations held out (0 interactions); at most 4 of one named user"
    )


def test_no_rows_give_an_empty_plan():
    plan = draw([])
    assert (plan.interaction_ids, plan.held_out_ids, plan.not_drawn) == ((), (), ())
    assert trainable([]) == 0
