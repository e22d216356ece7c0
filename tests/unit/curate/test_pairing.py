from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.curate.pairing import NotPaired, Pair, Pairing, PairingCursor, follows, pair
from sdpo_ray.records import Message, Role, Turn
from tests.support.builders import tool_use
from tests.support.conversations import (
    Scenario,
    brute_force,
    changed,
    chat,
    dialogue,
    may_pair,
    pairing_row,
    scenarios,
    turn,
    unambiguous_pairs,
)

ASKED = turn("t1", "2+2?", response="5")
CORRECTED = turn("t2", "2+2?", "5", "no, 4", response="4", at_s=110.0)


def paired(*turns: Turn) -> Pairing:
    """Pair all turns in one batch and one round."""
    return pair(map(pairing_row, turns), PairingCursor(decided=0, upto=1, seen=0))


def in_rounds(*batches: Sequence[Turn]) -> list[Pairing]:
    """Pair one batch per round, each when it is the newest."""
    known = [pairing_row(each, batch=number) for number, batch in enumerate(batches, 1) for each in batch]
    return [
        pair(
            (each for each in known if each.batch <= number),
            PairingCursor(decided=number - 1, upto=number, seen=number - 1),
        )
        for number in range(1, len(batches) + 1)
    ]


def names(pairing: Pairing) -> set[tuple[str, str]]:
    """Answer and follow-up of each pair."""
    return {(each.answer.turn_id, each.follow_up.turn_id) for each in pairing.pairs}


def not_paired(**counts: int) -> Pairing:
    return Pairing(pairs=(), not_paired=Counter(counts))


def test_a_follow_up_that_extends_question_and_answer_is_paired():
    found = Pair(answer=pairing_row(ASKED), follow_up=pairing_row(CORRECTED))
    assert paired(ASKED, CORRECTED) == Pairing(pairs=(found,), not_paired=Counter())


def test_every_turn_of_a_conversation_follows_the_one_before():
    third = turn("t3", "2+2?", "5", "no, 4", "4", "thanks", at_s=120.0)
    assert names(paired(ASKED, CORRECTED, third)) == {("t1", "t2"), ("t2", "t3")}


def test_a_turn_with_an_edited_history_is_not_paired():
    for history in (("2+3?", "5"), ("2+2?", "4"), ("2+2?", "5 ")):
        assert paired(ASKED, turn("t2", *history, "thanks", at_s=110.0)) == not_paired(unknown_answer=1)


@pytest.mark.parametrize("change", [{"tenant": "other"}, {"user": "u"}, {"conversation_id": "c"}])
def test_tenants_users_and_conversations_are_never_mixed(change):
    assert paired(ASKED, changed(CORRECTED, **change)) == not_paired(unknown_answer=1)
    assert names(paired(changed(ASKED, **change), changed(CORRECTED, **change))) == {("t1", "t2")}


def test_a_follow_up_that_began_before_the_answer_was_finished_is_not_one():
    assert paired(ASKED, changed(CORRECTED, started_at_s=100.9)) == not_paired(before_answer=1)
    assert names(paired(ASKED, changed(CORRECTED, started_at_s=101.0))) == {("t1", "t2")}


def test_a_clock_that_steps_back_costs_the_pairs_over_the_step_and_no_others():
    """Ten seconds into the conversation the clock steps back by an hour."""
    ann = dialogue("ann", follow_ups=4)
    stepped = [
        *ann[:2],
        *(changed(t, started_at_s=t.started_at_s - 3600, finished_at_s=t.finished_at_s - 3600) for t in ann[2:]),
    ]
    (found,) = in_rounds(stepped)
    assert names(found) == {("ann-0", "ann-1"), ("ann-2", "ann-3"), ("ann-3", "ann-4")}
    assert found.not_paired == Counter({NotPaired.BEFORE_ANSWER: 1})
    assert [names(each) for each in in_rounds(stepped[:2], stepped[2:])] == [
        {("ann-0", "ann-1")},
        {("ann-2", "ann-3"), ("ann-3", "ann-4")},
    ]


def test_a_follow_up_days_later_is_paired():
    late = changed(CORRECTED, started_at_s=9 * 86_400.0, finished_at_s=9 * 86_400.0 + 1)
    assert [names(each) for each in in_rounds([ASKED], [late])] == [set(), {("t1", "t2")}]


def test_anonymous_users_with_identical_text_are_counted_as_ambiguous():
    duplicate = changed(ASKED, turn_id="s1", started_at_s=105.0, finished_at_s=106.0)
    assert paired(ASKED, duplicate, CORRECTED) == not_paired(ambiguous=1)


def test_an_identical_answer_after_the_follow_up_is_not_ambiguous():
    duplicate = changed(ASKED, turn_id="s1", started_at_s=111.0, finished_at_s=112.0)
    assert names(paired(ASKED, duplicate, CORRECTED)) == {("t1", "t2")}


def test_named_users_and_conversations_with_ids_are_paired_despite_identical_text():
    for who in ({"user": "u1"}, {"conversation_id": "c1"}):
        duplicate = changed(ASKED, turn_id="s1", **who)
        reaction = changed(CORRECTED, turn_id="s2", **who)
        assert names(paired(ASKED, duplicate, CORRECTED, reaction)) == {("t1", "t2"), ("s1", "s2")}


def test_a_question_asked_again_pairs_by_its_answer_and_not_at_all_where_both_answers_are_the_same():
    regenerated = turn("t3", "2+2?", response="four", at_s=103.0)
    assert names(paired(ASKED, regenerated, CORRECTED)) == {("t1", "t2")}
    other = turn("t4", "2+2?", "four", "thanks", at_s=111.0)
    assert names(paired(ASKED, regenerated, CORRECTED, other)) == {("t1", "t2"), ("t3", "t4")}
    assert paired(ASKED, changed(regenerated, response="5"), CORRECTED) == not_paired(ambiguous=1)


def test_branches_of_one_round_are_not_paired():
    branch = turn("t3", "2+2?", "5", "why?", at_s=111.0)
    assert paired(ASKED, CORRECTED, branch) == not_paired(branch=2)


def test_a_branch_that_comes_later_changes_nothing_and_is_counted():
    branch = turn("t3", "2+2?", "5", "why?", at_s=111.0)
    first, later = in_rounds([ASKED, CORRECTED], [branch])
    assert names(first) == {("t1", "t2")}
    assert later == not_paired(branch=1)


def test_a_third_branch_is_a_branch_too():
    branches = [turn(f"b{n}", "2+2?", "5", f"why {n}?", at_s=111.0) for n in range(3)]
    assert in_rounds([ASKED, *branches[:2]], [branches[2]]) == [not_paired(branch=2), not_paired(branch=1)]


def test_of_a_follow_up_sent_twice_the_first_is_paired():
    retry = changed(CORRECTED, turn_id="t0", started_at_s=111.0)
    found = paired(ASKED, retry, CORRECTED)
    assert names(found) == {("t1", "t2")}
    assert found.not_paired == Counter({NotPaired.DUPLICATE_FOLLOW_UP: 1})
    twins = [changed(CORRECTED, turn_id=name) for name in ("t9", "t0")]
    assert names(paired(ASKED, *twins)) == {("t1", "t0")}


def test_a_retry_that_comes_later_is_counted_and_not_paired():
    retry = changed(CORRECTED, turn_id="t3", started_at_s=111.0)
    assert in_rounds([ASKED, CORRECTED], [retry])[1] == not_paired(duplicate_follow_up=1)


def test_both_answers_to_a_follow_up_sent_twice_can_be_reacted_to():
    retry = changed(CORRECTED, turn_id="t3", response="four", started_at_s=111.0)
    thanks = [
        turn(f"{a}{n}", *chat_of(each), "thanks", at_s=120.0)
        for n, (a, each) in enumerate([("x", CORRECTED), ("y", retry)])
    ]
    assert names(paired(ASKED, CORRECTED, retry, *thanks)) == {("t1", "t2"), ("t2", "x0"), ("t3", "y1")}


def chat_of(each: Turn) -> list[str]:
    return [*(message.content for message in each.messages), each.response]


def test_a_follow_up_read_before_its_answer_is_decided_when_both_are_there():
    (first, second) = in_rounds([CORRECTED], [ASKED])
    assert first == not_paired(unknown_answer=1)
    assert names(second) == {("t1", "t2")}
    # As the rounds does it: what came in one reading is decided in the next one.
    known = [pairing_row(CORRECTED, batch=1), pairing_row(ASKED, batch=2)]
    assert names(pair(known, PairingCursor(decided=0, upto=1, seen=0))) == {("t1", "t2")}


def test_a_late_answer_is_paired_with_the_first_of_its_waiting_follow_ups():
    retry, branch = changed(CORRECTED, turn_id="t3", started_at_s=111.0), turn("t4", "2+2?", "5", "why?", at_s=112.0)
    waited, late = in_rounds([CORRECTED, retry], [ASKED])
    assert (waited, late.not_paired) == (not_paired(unknown_answer=2), Counter(duplicate_follow_up=1))
    assert names(late) == {("t1", "t2")}
    assert in_rounds([CORRECTED], [branch], [ASKED])[2] == not_paired(branch=2)
    assert [names(each) for each in in_rounds([CORRECTED], [ASKED], [branch])] == [set(), {("t1", "t2")}, set()]


def test_a_late_second_answer_takes_no_follow_up_from_the_first():
    duplicate = changed(ASKED, turn_id="s1", started_at_s=99.0, finished_at_s=100.0)
    rounds = in_rounds([ASKED, CORRECTED], [duplicate])
    assert [names(each) for each in rounds] == [{("t1", "t2")}, set()]
    assert rounds[1].not_paired == Counter()


def test_an_answer_keeps_its_follow_up_when_an_identical_answer_arrives_late():
    early = turn("t1", "2+2?", response="5", at_s=100.0)
    duplicate = turn("s1", "2+2?", response="5", at_s=105.0)
    follow_up = turn("t3", "2+2?", "5", "no, 4", at_s=110.0)
    other = turn("t2", "2+2?", "5", "why?", at_s=102.0)
    first, second = in_rounds([early, follow_up], [duplicate, other])
    assert names(first) == {("t1", "t3")}
    assert second == not_paired(branch=1)


def test_follow_ups_after_the_cursor_wait():
    known = [pairing_row(ASKED, batch=1), pairing_row(CORRECTED, batch=2)]
    assert pair(known, PairingCursor(decided=0, upto=1, seen=0)) == not_paired()
    assert names(pair(known, PairingCursor(decided=1, upto=2, seen=2))) == {("t1", "t2")}
    assert pair(known, PairingCursor(decided=2, upto=2, seen=2)) == not_paired()


def asked_with_tools(*, result: str = "21 C", arguments: str = '{"city": "Paris"}') -> Turn:
    history = (*chat("Warm in Paris?"), *tool_use(result=result, arguments=arguments))
    return turn("t1", messages=history, response="Yes.")


def reacted(answer: Turn, *, role: Role = Role.USER, at_s: float = 110.0) -> Turn:
    history = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return turn("t2", messages=(*history, Message(role=role, content="In Fahrenheit")), at_s=at_s)


def test_a_reaction_to_an_answer_that_used_a_tool_is_paired():
    answer = asked_with_tools()
    assert names(paired(answer, reacted(answer))) == {("t1", "t2")}


def test_tool_calls_and_results_are_part_of_the_history():
    other_result, other_call = asked_with_tools(result="9 C"), asked_with_tools(arguments='{"city": "Rome"}')
    unknown = changed(asked_with_tools(), messages=chat("Warm in Paris?"))
    for other in (other_result, other_call, unknown):
        assert paired(asked_with_tools(), reacted(other)) == not_paired(unknown_answer=1)
        assert not follows(reacted(other), asked_with_tools())


def test_a_turn_that_ends_with_a_tool_result_is_not_a_follow_up():
    answer = asked_with_tools()
    result = reacted(answer, role=Role.TOOL)
    assert not follows(result, answer)
    assert paired(answer, result) == not_paired()


def test_the_stored_text_decides_what_the_digests_cannot_know():
    assert follows(CORRECTED, ASKED)
    # After a key rotation one user has two pseudonyms; the digests, which cover the name itself, tell users apart.
    assert follows(changed(CORRECTED, user="k2.u"), changed(ASKED, user="k1.u"))
    assert not follows(changed(CORRECTED, tenant="other"), ASKED)
    assert not follows(CORRECTED, changed(ASKED, response="4"))
    assert not follows(changed(CORRECTED, started_at_s=100.5), ASKED)


class Rounds:
    """Curation without tables: ingests of a log with several partitions, and rounds of pairing between them."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.known: list[tuple[Turn, int]] = []
        self.batch = self.decided = self.seen = 0
        self.pairs: list[tuple[str, str]] = []
        self.not_paired: Counter[str] = Counter()

    def read(self, turns: Iterable[Turn]) -> None:
        """One ingest, in any order, cut into batches; then rounds of pairing, unless the process is killed first."""
        settled = self.batch
        arrived = self._data.draw(st.permutations(list(turns)))
        while arrived:
            size = self._data.draw(st.integers(1, len(arrived)))
            self.batch += 1
            self.known += [(each, self.batch) for each in arrived[:size]]
            arrived = arrived[size:]
        if not self._data.draw(st.booleans()):
            self.decide(settled)

    def decide(self, settled: int) -> None:
        while self.decided < settled or self.seen < self.batch:
            upto = max(self.decided, self._data.draw(st.integers(min(self.decided + 1, settled), settled)))
            now = PairingCursor(decided=self.decided, upto=upto, seen=self.seen)
            found = pair([pairing_row(each, batch=batch) for each, batch in self.known], now)
            self.pairs += [(each.follow_up.turn_id, each.answer.turn_id) for each in found.pairs]
            self.not_paired += found.not_paired
            self.decided, self.seen = upto, self.batch

    def finish(self) -> None:
        """One more advance, without new turns."""
        self.decide(self.batch)


def replay(scenario: Scenario, data: st.DataObject) -> Rounds:
    """An ingest reads all turns that are durable when it begins, and maybe some that become durable meanwhile."""
    rounds, rest, due = Rounds(data), list(scenario.turns), 0
    while rest:
        durable = data.draw(st.integers(due, len(rest)))
        late = rest[durable:]
        meanwhile = data.draw(st.lists(st.sampled_from(late), min_size=durable == 0, unique_by=id)) if late else []
        rounds.read([*rest[:durable], *meanwhile])
        # The next ingest begins after this one ended, so all turns that this one read are durable by then.
        due = sum(each not in meanwhile for each in late[: max(map(late.index, meanwhile), default=0)])
        rest = [each for each in late if each not in meanwhile]
    rounds.finish()
    return rounds


def check(scenario: Scenario, rounds: Rounds, *, steady: bool = True) -> None:
    """No turn is paired twice; a pair fits by its text, and is the true one if that is stored and clocks are right."""
    by_id = {each.turn_id: each for each in (*scenario.turns, *scenario.not_stored)}
    stored = {each.turn_id for each in scenario.turns}
    assert len({a for _, a in rounds.pairs}) == len({f for f, _ in rounds.pairs}) == len(rounds.pairs)
    for follow_up, answer in rounds.pairs:
        assert may_pair(by_id[answer], by_id[follow_up])
        if steady and (parent := scenario.parents.get(follow_up)) in stored:
            assert answer == parent


@settings(deadline=None, max_examples=200)
@given(scenarios())
def test_pairing_is_what_brute_force_finds_and_never_wrong(scenario: Scenario):
    found = paired(*scenario.turns)
    pairs = {each.follow_up.turn_id: each.answer.turn_id for each in found.pairs}
    assert pairs == brute_force(scenario.turns)
    assert len(pairs) + found.not_paired.total() == scenario.continued()


@settings(deadline=None, max_examples=200)
@given(scenarios(), st.data())
def test_in_any_ingests_no_pair_is_wrong_and_each_follow_up_is_decided_once(scenario: Scenario, data: st.DataObject):
    rounds = replay(scenario, data)
    check(scenario, rounds)
    assert len(rounds.pairs) + rounds.not_paired.total() == scenario.continued()
    # The true answer of each follow-up is known in time: a follow-up without one was edited.
    edited = scenario.continued() - sum(each.turn_id in scenario.parents for each in scenario.turns)
    assert rounds.not_paired[NotPaired.UNKNOWN_ANSWER] + rounds.not_paired[NotPaired.BEFORE_ANSWER] <= edited
    assert unambiguous_pairs(scenario.turns) <= set(rounds.pairs)
    # Further pairs have a competing follow-up that arrived too late: a branch, or the same follow-up sent again.
    at_once = brute_force(scenario.turns)
    for _, answer in set(rounds.pairs) - set(at_once.items()):
        given = next(each for each in scenario.turns if each.turn_id == answer)
        assert sum(may_pair(given, each) for each in scenario.turns) > 1


@settings(deadline=None, max_examples=200)
@given(scenarios(lossy=True), st.data())
def test_with_answers_that_were_not_stored_a_pair_is_true_or_has_identical_text_of_the_same_caller(
    scenario: Scenario, data: st.DataObject
):
    rounds = replay(scenario, data)
    check(scenario, rounds)
    assert len(rounds.pairs) + rounds.not_paired.total() == scenario.continued()


@settings(deadline=None, max_examples=200)
@given(scenarios(lossy=True, clock_steps=True), st.data())
def test_with_clock_steps_a_pair_has_identical_text_of_the_same_caller_and_no_turn_is_paired_twice(
    scenario: Scenario, data: st.DataObject
):
    rounds = replay(scenario, data)
    check(scenario, rounds, steady=False)


@settings(deadline=None, max_examples=200)
@given(scenarios(lossy=True, clock_steps=True), st.randoms(use_true_random=False), st.data())
def test_in_any_order_of_arrival_no_turn_is_paired_twice_and_a_follow_up_is_decided_again_at_most_once(
    scenario: Scenario, random, data: st.DataObject
):
    turns = list(scenario.turns)
    random.shuffle(turns)
    rounds = Rounds(data)
    while turns:
        size = data.draw(st.integers(1, len(turns)))
        rounds.read(turns[:size])
        turns = turns[size:]
    rounds.finish()
    check(scenario, rounds, steady=False)
    again = len(rounds.pairs) + rounds.not_paired.total() - scenario.continued()
    assert 0 <= again <= rounds.not_paired[NotPaired.UNKNOWN_ANSWER] + rounds.not_paired[NotPaired.BEFORE_ANSWER]
