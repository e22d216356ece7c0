from dataclasses import replace

import pytest
from conversations import chat, dialogue, turn

from sdpo_ray.curate.admission import Refusal, admit
from sdpo_ray.curate.sessionize import conversation
from sdpo_ray.records import Consent, FinishReason, Interaction, Message, Role, VersionSpan
from tests.builders import tool_use

ANSWER = turn("t1", "Capital of France?", response="It is  Paris.")
FOLLOW_UP = turn("t2", "Capital of France?", "It is  Paris.", "shorter", at_s=110.0)


def said(text: str):
    return replace(FOLLOW_UP, messages=chat("Capital of France?", "It is  Paris.", text))


def test_a_sound_pair_becomes_an_interaction_word_for_word():
    assert admit(ANSWER, said(" shorter\n"), max_follow_up_chars=10) == Interaction(
        interaction_id="t1",
        turn=ANSWER,
        follow_up=" shorter\n",
        follow_up_turn_id="t2",
        follow_up_at_s=110.0,
        conversation=conversation(ANSWER),
    )


def test_the_reaction_s_own_answer_plays_no_part():
    reaction = replace(FOLLOW_UP, finish_reason=FinishReason.ABORT, response_ids=(), response_logprobs=())
    assert isinstance(admit(ANSWER, reaction, max_follow_up_chars=10), Interaction)


@pytest.mark.parametrize(
    ("reason", "answer", "follow_up"),
    [
        (Refusal.NOT_A_FOLLOW_UP, ANSWER, replace(FOLLOW_UP, user="somebody")),
        (Refusal.NOT_A_FOLLOW_UP, ANSWER, replace(FOLLOW_UP, started_at_s=100.5)),
        (Refusal.NO_CONSENT, replace(ANSWER, consent=Consent.NONE), FOLLOW_UP),
        (Refusal.NO_CONSENT, ANSWER, replace(FOLLOW_UP, consent=Consent.NONE)),
        (Refusal.ABORTED, replace(ANSWER, finish_reason=FinishReason.ABORT), FOLLOW_UP),
        (Refusal.EMPTY_RESPONSE, replace(ANSWER, response_ids=(), response_logprobs=()), FOLLOW_UP),
        (
            Refusal.MIXED_VERSIONS,
            replace(
                ANSWER,
                version_spans=(
                    VersionSpan(policy_version=3, start=0, end=1),
                    VersionSpan(policy_version=4, start=1, end=2),
                ),
            ),
            FOLLOW_UP,
        ),
        (Refusal.NON_FINITE_LOGPROBS, replace(ANSWER, response_logprobs=(-1.0, float("nan"))), FOLLOW_UP),
        (Refusal.NON_FINITE_LOGPROBS, replace(ANSWER, response_logprobs=(-float("inf"), -1.0)), FOLLOW_UP),
        (Refusal.EMPTY_FOLLOW_UP, ANSWER, said(" \n\t\u2003")),
        (Refusal.FOLLOW_UP_TOO_LONG, ANSWER, said("x" * 21)),
        (Refusal.REPEATS_ANSWER, ANSWER, said("it is paris. ")),
    ],
)
def test_what_is_unsound_is_refused_by_name(reason, answer, follow_up):
    assert admit(answer, follow_up, max_follow_up_chars=20) is reason


def test_an_answer_that_ran_into_the_token_limit_is_left_to_the_learner():
    assert isinstance(
        admit(replace(ANSWER, finish_reason=FinishReason.LENGTH), FOLLOW_UP, max_follow_up_chars=20), Interaction
    )


def test_a_reaction_to_an_answer_that_read_a_tools_result_is_admitted_and_a_tools_result_is_no_reaction():
    answer = replace(ANSWER, messages=(*chat("Capital of France?"), *tool_use(result="Paris")))
    said = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    reaction = replace(FOLLOW_UP, messages=(*said, *chat("shorter")))
    assert isinstance(admit(answer, reaction, max_follow_up_chars=20), Interaction)
    forgot = replace(reaction, messages=(*said[:-2], replace(said[-2], content="Rome"), *reaction.messages[-2:]))
    result = replace(reaction, messages=(*said, Message(role=Role.TOOL, content="shorter", tool_call_id="c2")))
    for other in (forgot, result):
        assert admit(answer, other, max_follow_up_chars=20) is Refusal.NOT_A_FOLLOW_UP


def test_an_answer_known_as_text_alone_is_empty_where_its_text_is():
    unknown = {"prompt_ids": (), "response_ids": (), "response_logprobs": (), "version_spans": ()}
    text = replace(ANSWER, **unknown)
    assert isinstance(admit(text, FOLLOW_UP, max_follow_up_chars=20), Interaction)
    silent = replace(text, response="")
    said_nothing = replace(FOLLOW_UP, messages=chat("Capital of France?", "", "shorter"))
    assert admit(silent, said_nothing, max_follow_up_chars=20) is Refusal.EMPTY_RESPONSE


def test_two_spans_of_one_version_are_one_version():
    spans = (VersionSpan(policy_version=3, start=0, end=1), VersionSpan(policy_version=3, start=1, end=2))
    assert isinstance(admit(replace(ANSWER, version_spans=spans), FOLLOW_UP, max_follow_up_chars=20), Interaction)


def test_a_follow_up_of_the_greatest_length_is_kept():
    assert isinstance(admit(ANSWER, said("x" * 20), max_follow_up_chars=20), Interaction)


def test_a_plain_dialogue_is_admitted():
    first, second = dialogue("ann")
    assert isinstance(admit(first, second, max_follow_up_chars=100), Interaction)
