from collections import Counter
from dataclasses import replace

from conversations import Town, chat, towns, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.curate.sessionize import (
    Pair,
    Pairing,
    Unpaired,
    continuation_key,
    conversation,
    follows,
    keyed,
    pair,
    parent_key,
)
from sdpo_ray.records import Message, Role, Turn
from tests.builders import tool_use


def paired(*turns: Turn) -> Pairing:
    return pair(map(keyed, turns), {t.turn_id for t in turns})


ASKED = turn("t1", "2+2?", response="5")
CORRECTED = turn("t2", "2+2?", "5", "no, 4", response="4", at_s=110.0)


def test_a_follow_up_that_extends_question_and_answer_is_paired():
    assert paired(ASKED, CORRECTED) == Pairing(pairs=(Pair(answer="t1", follow_up="t2"),), unpaired=Counter())


def test_an_answer_that_arrives_after_its_follow_up_is_paired():
    late = pair(map(keyed, (ASKED, CORRECTED)), new={"t1"})
    assert late.pairs == (Pair(answer="t1", follow_up="t2"),)


def test_every_turn_of_a_conversation_follows_the_one_before():
    third = turn("t3", "2+2?", "5", "no, 4", "4", "thanks", at_s=120.0)
    assert {(p.answer, p.follow_up) for p in paired(ASKED, CORRECTED, third).pairs} == {("t1", "t2"), ("t2", "t3")}


def test_an_edited_history_yields_nothing():
    assert paired(ASKED, turn("t2", "2+3?", "5", "thanks", at_s=110.0)).pairs == ()
    assert paired(ASKED, turn("t2", "2+2?", "4", "thanks", at_s=110.0)).pairs == ()
    assert paired(ASKED, turn("t2", "2+2?", "5 ", "thanks", at_s=110.0)).pairs == ()


def test_tenants_users_and_conversations_are_never_mixed():
    for change in ({"tenant": "other"}, {"user": "u"}, {"conversation_id": "c"}):
        assert paired(ASKED, replace(CORRECTED, **change)).pairs == ()


def test_a_follow_up_that_began_before_the_answer_was_finished_is_not_one():
    assert paired(ASKED, replace(CORRECTED, started_at_s=100.9)).pairs == ()
    assert paired(ASKED, replace(CORRECTED, started_at_s=101.0)).pairs != ()


def test_strangers_with_identical_words_are_counted_as_ambiguous():
    stranger = replace(ASKED, turn_id="s1", started_at_s=105.0, finished_at_s=106.0)
    both = paired(ASKED, stranger, CORRECTED)
    assert both == Pairing(pairs=(), unpaired=Counter({Unpaired.AMBIGUOUS: 1}))


def test_a_stranger_who_asks_the_same_only_later_casts_no_doubt():
    stranger = replace(ASKED, turn_id="s1", started_at_s=111.0, finished_at_s=112.0)
    assert paired(ASKED, stranger, CORRECTED).pairs == (Pair(answer="t1", follow_up="t2"),)


def test_branches_known_together_give_nothing():
    branch = turn("t3", "2+2?", "5", "why?", at_s=111.0)
    assert paired(ASKED, CORRECTED, branch) == Pairing(pairs=(), unpaired=Counter({Unpaired.BRANCH: 2}))


def test_a_branch_that_comes_later_changes_nothing_and_is_counted():
    branch = turn("t3", "2+2?", "5", "why?", at_s=111.0)
    later = pair(map(keyed, (ASKED, CORRECTED, branch)), new={"t3"})
    assert later == Pairing(pairs=(), unpaired=Counter({Unpaired.BRANCH: 1}))


def test_of_a_follow_up_sent_twice_the_first_counts():
    retry = replace(CORRECTED, turn_id="t0", started_at_s=111.0)
    assert paired(ASKED, retry, CORRECTED) == Pairing(
        pairs=(Pair(answer="t1", follow_up="t2"),), unpaired=Counter({Unpaired.DUPLICATE_FOLLOW_UP: 1})
    )


def test_a_retry_that_comes_later_is_counted_and_not_paired():
    retry = replace(CORRECTED, turn_id="t3", started_at_s=111.0)
    later = pair(map(keyed, (ASKED, CORRECTED, retry)), new={"t3"})
    assert later == Pairing(pairs=(), unpaired=Counter({Unpaired.DUPLICATE_FOLLOW_UP: 1}))


def test_an_answer_keeps_its_follow_up_when_a_stranger_in_the_same_words_arrives_late():
    early = turn("t1", "2+2?", response="5", at_s=100.0)
    stranger = turn("s1", "2+2?", response="5", at_s=105.0)
    follow_up = turn("t3", "2+2?", "5", "no, 4", at_s=110.0)
    assert paired(early, follow_up).pairs == (Pair(answer="t1", follow_up="t3"),)
    other = turn("t2", "2+2?", "5", "why?", at_s=102.0)
    known = [*map(keyed, (early, follow_up, stranger, other))]
    assert pair(known, new={"s1", "t2"}) == Pairing(pairs=(), unpaired=Counter({Unpaired.BRANCH: 1}))
    assert pair(known, new={"t2"}) == Pairing(pairs=(), unpaired=Counter({Unpaired.BRANCH: 1}))


def test_no_two_ways_of_cutting_the_same_letters_share_a_key():
    one = turn("t1", "ab", response="c")
    other = turn("t1", "a", response="bc")
    renamed = replace(one, tenant="defaultu", user="")
    moved = replace(one, tenant="default", user="u")
    assert len({continuation_key(t) for t in (one, other, renamed, moved)}) == 4


def asked_with_tools(*, result: str = "21 C", arguments: str = '{"city": "Paris"}') -> Turn:
    said = (*chat("Warm in Paris?"), *tool_use(result=result, arguments=arguments))
    return turn("t1", messages=said, response="Yes.")


def reacted(answer: Turn, *, role: Role = Role.USER, at_s: float = 110.0) -> Turn:
    said = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return turn("t2", messages=(*said, Message(role=role, content="In Fahrenheit")), at_s=at_s)


def test_a_reaction_to_an_answer_that_used_a_tool_is_paired():
    answer = asked_with_tools()
    assert paired(answer, reacted(answer)).pairs == (Pair(answer="t1", follow_up="t2"),)


def test_calls_and_their_results_are_words_of_the_conversation():
    other_result, other_call = asked_with_tools(result="9 C"), asked_with_tools(arguments='{"city": "Rome"}')
    unknown = replace(asked_with_tools(), messages=chat("Warm in Paris?"))
    assert len({continuation_key(t) for t in (asked_with_tools(), other_result, other_call, unknown)}) == 4
    for other in (other_result, other_call, unknown):
        assert paired(asked_with_tools(), reacted(other)).pairs == ()


def test_a_turn_that_ends_with_a_tools_result_is_nobodys_follow_up():
    answer = asked_with_tools()
    result = reacted(answer, role=Role.TOOL)
    assert parent_key(result) == ""
    assert not follows(result, answer)
    assert paired(answer, result) == Pairing(pairs=(), unpaired=Counter())
    assert parent_key(turn("t2", messages=(*chat("Warm?"), *tool_use()))) == ""


def test_an_opening_follows_nothing():
    system = (Message(role=Role.SYSTEM, content="be brief"), *chat("hello"))
    assert parent_key(turn("t1", "hello")) == ""
    assert parent_key(turn("t1", messages=system)) == ""


def test_all_turns_of_a_conversation_share_its_digest_and_others_do_not():
    assert conversation(ASKED) == conversation(CORRECTED)
    assert conversation(ASKED) != conversation(replace(ASKED, user="u"))
    named = replace(ASKED, conversation_id="c")
    assert conversation(named) == conversation(turn("t9", "something else", conversation_id="c"))
    assert conversation(named) != conversation(ASKED)


def brute_force(turns: list[Turn]) -> dict[str, str]:
    """Follow-up to answer, on the words themselves: one answer fits, and all who follow it say the same."""
    fitting = {f.turn_id: [a for a in turns if follows(f, a)] for f in turns}
    certain = {f.turn_id: fits[0].turn_id for f in turns if len(fits := fitting[f.turn_id]) == 1}
    expected = {}
    for answer in set(certain.values()):
        reactions = sorted(
            (f for f in turns if certain.get(f.turn_id) == answer), key=lambda f: (f.started_at_s, f.turn_id)
        )
        if len({f.messages for f in reactions}) == 1:
            expected[reactions[0].turn_id] = answer
    return expected


@settings(deadline=None, max_examples=300)
@given(towns())
def test_pairing_is_what_brute_force_finds_and_never_wrong(town: Town):
    found = {p.follow_up: p.answer for p in paired(*town.turns).pairs}
    assert found == brute_force(town.turns)
    assert found.items() <= town.parents.items()


@settings(deadline=None, max_examples=300)
@given(towns(), st.data())
def test_pairing_as_turns_come_in_is_never_wrong_and_decides_each_turn_once(town: Town, data: st.DataObject):
    known, pairs, unpaired = 0, [], Counter()
    while known < len(town.turns):
        before, known = known, data.draw(st.integers(known + 1, len(town.turns)))
        step = pair(map(keyed, town.turns[:known]), {t.turn_id for t in town.turns[before:known]})
        pairs += step.pairs
        unpaired += step.unpaired
    assert {(p.follow_up, p.answer) for p in pairs} <= town.parents.items()
    assert len({p.answer for p in pairs}) == len({p.follow_up for p in pairs}) == len(pairs)
    assert len(pairs) + unpaired.total() == sum(any(follows(f, a) for a in town.turns) for f in town.turns)


@settings(deadline=None, max_examples=300)
@given(towns(), st.randoms(use_true_random=False), st.data())
def test_in_any_order_of_arrival_no_answer_or_follow_up_is_used_twice(town: Town, random, data: st.DataObject):
    turns = list(town.turns)
    random.shuffle(turns)
    known, pairs, unpaired = 0, [], Counter()
    while known < len(turns):
        before, known = known, data.draw(st.integers(known + 1, len(turns)))
        step = pair(map(keyed, turns[:known]), {t.turn_id for t in turns[before:known]})
        pairs += step.pairs
        unpaired += step.unpaired
    assert len({p.answer for p in pairs}) == len({p.follow_up for p in pairs}) == len(pairs)
    assert len(pairs) + unpaired.total() == sum(any(follows(f, a) for a in turns) for f in turns)
