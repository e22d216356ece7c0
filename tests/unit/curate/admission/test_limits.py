"""Limits per hour. Times are seconds; an hour is the 3600 s before, without its first instant."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.admission.limits import AdmissionCounts, within_limits
from sdpo_ray.curate.admission.reasons import NotAdmitted


def one(
    name: str, at_s: float, *, user: str = "ann", tenant: str = "shop", content: str | None = None
) -> AdmissionCounts:
    return AdmissionCounts(interaction_id=name, tenant=tenant, user=user, content=content or name, follow_up_at_s=at_s)


def over(
    *new: AdmissionCounts, before: tuple[AdmissionCounts, ...] = (), copies: dict[str, int] | None = None, **config: int
):
    settings = {"max_per_user_hour": 0} | config
    return within_limits(new, before=before, copies=copies or {}, config=CurateConfig(**settings))


def test_a_user_has_so_many_an_hour_and_one_more_when_the_first_is_an_hour_old():
    came = [one("a", 0.0), one("b", 10.0), one("c", 3599.0), one("d", 3600.0), one("e", 3609.0), one("f", 3610.0)]
    # c: a and b in the hour before. d: a is an hour old. e: b and d. f: b is an hour old.
    assert over(*came, max_per_user_hour=2) == {"c": NotAdmitted.USER_FLOOD, "e": NotAdmitted.USER_FLOOD}


def test_the_order_is_that_of_the_follow_ups_and_not_of_their_arrival():
    came = [one("late", 20.0), one("early", 10.0), one("first", 0.0)]
    assert over(*came, max_per_user_hour=2) == {"late": NotAdmitted.USER_FLOOD}
    assert over(one("b", 0.0), one("a", 0.0), max_per_user_hour=1) == {"b": NotAdmitted.USER_FLOOD}


def test_what_was_admitted_before_counts_and_is_never_taken_back():
    before = (one("x", 100.0), one("y", 200.0))
    assert over(one("new", 3700.0), before=before, max_per_user_hour=2) == {}
    assert over(one("new", 3699.0), before=before, max_per_user_hour=2) == {"new": NotAdmitted.USER_FLOOD}
    # It came late and is older than what was admitted: the hour before it is empty.
    assert over(one("old", 50.0), before=before, max_per_user_hour=1) == {}
    assert over(before=(*before, one("z", 201.0)), max_per_user_hour=1) == {}


def test_users_of_two_tenants_with_one_name_are_two_users():
    came = [one("a", 0.0), one("b", 1.0, tenant="bank"), one("c", 2.0, user="bob")]
    assert over(*came, max_per_user_hour=1) == {}


def test_only_the_tenants_limit_applies_to_anonymous_users():
    came = [one(str(n), float(n), user="") for n in range(4)]
    assert over(*came, max_per_user_hour=1) == {}
    assert over(*came, max_per_tenant_hour=3) == {"3": NotAdmitted.TENANT_FLOOD}


def test_a_tenants_limit_is_over_all_its_users_and_no_other_tenants():
    came = [one("a", 0.0), one("b", 1.0, user="bob"), one("c", 2.0, user=""), one("d", 3.0, tenant="bank")]
    assert over(*came, max_per_tenant_hour=2) == {"c": NotAdmitted.TENANT_FLOOD}


def test_one_user_may_have_so_many_copies_ever():
    came = [one(name, at_s, content="same") for name, at_s in (("a", 0.0), ("b", 9e6), ("c", 18e6))]
    assert over(*came) == {"b": NotAdmitted.DUPLICATE, "c": NotAdmitted.DUPLICATE}
    assert over(*came, max_copies=2) == {"c": NotAdmitted.DUPLICATE}
    assert over(came[2], copies={"same": 1}) == {"c": NotAdmitted.DUPLICATE}
    assert over(came[2], copies={"same": 1, "other": 7}, max_copies=2) == {}


def test_copies_that_are_among_those_before_are_counted_once():
    before = (one("a", 0.0, content="same"),)
    assert over(one("b", 1.0, content="same"), before=before, copies={"same": 1}, max_copies=2) == {}


def test_refused_interactions_do_not_count():
    came = [one("a", 0.0, content="same"), one("b", 1.0, content="same"), one("c", 2.0), one("d", 3.0)]
    expected = {"b": NotAdmitted.DUPLICATE, "d": NotAdmitted.USER_FLOOD}
    assert over(*came, max_per_user_hour=2, max_per_tenant_hour=2) == expected


def test_a_copy_is_refused_as_such_before_any_flood_and_a_users_flood_before_the_tenants():
    came = [one("a", 0.0, content="same"), one("b", 1.0, content="same"), one("c", 2.0)]
    expected = {"b": NotAdmitted.DUPLICATE, "c": NotAdmitted.USER_FLOOD}
    assert over(*came, max_per_user_hour=1, max_per_tenant_hour=1) == expected


def test_the_default_holds_a_user_to_sixty_an_hour_and_no_tenant():
    came = [one(f"{n:03d}", float(n)) for n in range(61)]
    assert within_limits(came, before=[], copies={}, config=CurateConfig()) == {"060": NotAdmitted.USER_FLOOD}
    crowd = [one(f"{n:03d}", float(n), user=f"u{n}") for n in range(500)]
    assert within_limits(crowd, before=[], copies={}, config=CurateConfig()) == {}


names = st.sampled_from(["", "ann", "bob"])
crowds = st.lists(st.tuples(names, st.sampled_from(["shop", "bank"]), st.integers(0, 9000)), max_size=30)


@given(crowds, st.integers(1, 4), st.integers(1, 6))
def test_no_hour_holds_more_than_the_limits_and_nothing_is_refused_without_a_full_one(crowd, per_user, per_tenant):
    came = [one(f"{n:02d}", float(at_s), user=user, tenant=tenant) for n, (user, tenant, at_s) in enumerate(crowd)]
    refused = over(*came, max_per_user_hour=per_user, max_per_tenant_hour=per_tenant)
    kept = sorted((each for each in came if each.interaction_id not in refused), key=lambda each: each.follow_up_at_s)

    def hour_before(each: AdmissionCounts, those: list[AdmissionCounts]) -> list[AdmissionCounts]:
        return [
            k
            for k in those
            if (each.follow_up_at_s - 3600 < k.follow_up_at_s, k.follow_up_at_s, k.interaction_id)
            < (True, each.follow_up_at_s, each.interaction_id)
            and each.follow_up_at_s - 3600 < k.follow_up_at_s
        ]

    for each in came:
        before = hour_before(each, kept)
        of_user = Counter((k.tenant, k.user) for k in before)[(each.tenant, each.user)] if each.user else 0
        of_tenant = sum(k.tenant == each.tenant for k in before)
        full = of_user >= per_user or of_tenant >= per_tenant
        assert full == (each.interaction_id in refused)
