from dataclasses import replace

import pytest

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.admission.reactions import Reaction, reaction_in_turn
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.admission.rules import AdmissionRules, admit
from sdpo_ray.records import Consent, FinishReason, Interaction, Message, Redaction, Role, Turn, VersionSpan
from tests.support.builders import tool_use
from tests.support.conversations import changed, chat, dialogue, turn

ANSWER = turn("t1", "Capital of France?", response="It is  Paris.")
REACTION = Reaction(interaction_id="t1", text="shorter", source_id="t2", consent=Consent.TRAIN, at_s=110.0)
DAY_S = 86_400.0
AS_TEXT = {"prompt_ids": (), "response_ids": (), "response_logprobs": (), "version_spans": ()}


def rules(
    *, now_s: float = 120.0, languages: tuple[str, ...] = (), found: str | None = "en", **config: int
) -> AdmissionRules:
    """Follow-ups have at most 20 characters, answers 30; "@" counts as text that has to be redacted."""
    lengths = {"max_follow_up_chars": 20, "max_response_chars": 30} | config
    return AdmissionRules(
        config=CurateConfig(languages=languages, **lengths),
        now_s=now_s,
        leaks=lambda text: "@" in text,
        detect=lambda text: found,
    )


def decided(
    answer: Turn = ANSWER, reaction: Reaction = REACTION, by: AdmissionRules | None = None
) -> Interaction | NotAdmitted:
    return admit(answer, reaction, by or rules())


def test_a_valid_pair_becomes_an_interaction_word_for_word():
    assert decided(reaction=replace(REACTION, text=" shorter\n")) == Interaction(
        interaction_id="t1",
        turn=ANSWER,
        follow_up=" shorter\n",
        follow_up_turn_id="t2",
        follow_up_at_s=110.0,
        conversation=ANSWER.keys.conversation,
    )


def test_the_reaction_is_the_last_message_of_the_follow_up_and_not_its_answer():
    follow_up = turn("t2", "Capital of France?", "It is  Paris.", "shorter", at_s=110.0)
    broken = replace(follow_up, finish_reason=FinishReason.ABORT, response_ids=(), response_logprobs=())
    assert reaction_in_turn(ANSWER, follow_up) == reaction_in_turn(ANSWER, broken) == REACTION


@pytest.mark.parametrize(
    ("reason", "answer", "reaction"),
    [
        (NotAdmitted.NO_CONSENT, replace(ANSWER, consent=Consent.NONE), REACTION),
        (NotAdmitted.NO_CONSENT, ANSWER, replace(REACTION, consent=Consent.NONE)),
        (NotAdmitted.EMPTY_RESPONSE, replace(ANSWER, response_ids=(), response_logprobs=()), REACTION),
        (NotAdmitted.RESPONSE_TOO_LONG, replace(ANSWER, response="x" * 31), REACTION),
        (
            NotAdmitted.MIXED_VERSIONS,
            replace(
                ANSWER,
                version_spans=(
                    VersionSpan(policy_version=3, start=0, end=1),
                    VersionSpan(policy_version=4, start=1, end=2),
                ),
            ),
            REACTION,
        ),
        (NotAdmitted.NON_FINITE_LOGPROBS, replace(ANSWER, response_logprobs=(-1.0, float("nan"))), REACTION),
        (NotAdmitted.NON_FINITE_LOGPROBS, replace(ANSWER, response_logprobs=(-float("inf"), -1.0)), REACTION),
        (NotAdmitted.EMPTY_FOLLOW_UP, ANSWER, replace(REACTION, text=" \n\t\u2003")),
        (NotAdmitted.FOLLOW_UP_TOO_LONG, ANSWER, replace(REACTION, text="x" * 21)),
        (NotAdmitted.REPEATS_ANSWER, ANSWER, replace(REACTION, text="it is paris. ")),
        (NotAdmitted.NOT_REDACTED, ANSWER, replace(REACTION, text="ann@example")),
        (NotAdmitted.NOT_REDACTED, replace(ANSWER, response="ann@example"), REACTION),
        (
            NotAdmitted.NOT_REDACTED,
            replace(ANSWER, messages=chat("ann@example", "so?", "Capital of France?")),
            REACTION,
        ),
    ],
)
def test_an_invalid_pair_is_refused_with_its_reason(reason, answer, reaction):
    assert decided(answer, reaction) is reason


def test_the_first_reason_in_the_order_of_the_list_is_the_one_that_counts():
    """Everything is wrong at first; each step corrects one thing."""
    spans = (VersionSpan(policy_version=3, start=0, end=1), VersionSpan(policy_version=4, start=1, end=2))
    long = "ann@example " * 3
    answer = replace(
        ANSWER,
        consent=Consent.NONE,
        response=long,
        response_ids=(),
        response_logprobs=(),
        version_spans=spans,
    )
    reaction, by = (
        replace(REACTION, text="  "),
        rules(now_s=91 * DAY_S, languages=("de",), found=None, min_follow_up_chars=5),
    )
    steps: list[tuple[NotAdmitted, dict[str, object], dict[str, object], AdmissionRules]] = [
        (NotAdmitted.NO_CONSENT, {"consent": Consent.TRAIN}, {}, by),
        (NotAdmitted.EMPTY_RESPONSE, {"response_ids": (1,), "response_logprobs": (float("nan"),)}, {}, by),
        (NotAdmitted.RESPONSE_TOO_LONG, {"response": "ann@example"}, {}, by),
        (NotAdmitted.MIXED_VERSIONS, {"version_spans": spans[:1]}, {}, by),
        (NotAdmitted.NON_FINITE_LOGPROBS, {"response_logprobs": (-1.0,)}, {}, by),
        (NotAdmitted.EMPTY_FOLLOW_UP, {}, {"text": "no"}, by),
        (NotAdmitted.FOLLOW_UP_TOO_SHORT, {}, {"text": long}, by),
        (NotAdmitted.FOLLOW_UP_TOO_LONG, {}, {"text": "Ann@Example "}, by),
        (NotAdmitted.REPEATS_ANSWER, {}, {"text": "not ann@example"}, by),
        (NotAdmitted.TOO_OLD, {}, {"at_s": 2 * DAY_S}, by),
        (NotAdmitted.NOT_REDACTED, {"response": "Paris"}, {"text": "not Paris"}, by),
        (NotAdmitted.UNCLEAR_LANGUAGE, {}, {}, replace(by, detect=lambda text: "en")),
        (NotAdmitted.NOT_LANGUAGE, {}, {}, replace(by, detect=lambda text: "de")),
    ]
    for reason, better_answer, better_reaction, better_rules in steps:
        assert decided(answer, reaction, by) is reason
        answer, reaction, by = replace(answer, **better_answer), replace(reaction, **better_reaction), better_rules
    assert isinstance(decided(answer, reaction, by), Interaction)
    in_the_stage = {NotAdmitted.NOT_A_FOLLOW_UP, NotAdmitted.UNKNOWN_TURN, NotAdmitted.NOT_THEIRS}
    in_the_limits = {NotAdmitted.DUPLICATE, NotAdmitted.USER_FLOOD, NotAdmitted.TENANT_FLOOD}
    listed = [reason for reason in NotAdmitted if reason not in in_the_stage | in_the_limits]
    assert [reason for reason, *_ in steps] == listed


def test_lengths_are_kept_up_to_the_limit():
    assert isinstance(decided(reaction=replace(REACTION, text="x" * 20)), Interaction)
    assert isinstance(decided(replace(ANSWER, response="x" * 30)), Interaction)
    short = rules(min_follow_up_chars=3)
    assert isinstance(decided(reaction=replace(REACTION, text="why"), by=short), Interaction)
    assert decided(reaction=replace(REACTION, text=" no "), by=short) is NotAdmitted.FOLLOW_UP_TOO_SHORT


def test_age_counts_from_the_reaction_to_the_second():
    assert isinstance(decided(by=rules(now_s=110.0 + 90 * DAY_S)), Interaction)
    assert decided(by=rules(now_s=110.5 + 90 * DAY_S)) is NotAdmitted.TOO_OLD


def test_the_language_is_read_from_question_answer_and_reaction_together():
    asked: list[str] = []

    def note(text: str) -> str:
        asked.append(text)
        return "en"

    system = Message(role=Role.SYSTEM, content="Antworte kurz.")
    answer = replace(ANSWER, messages=(system, *chat("Salut !", "Salut.", "Capital of France?")))
    assert isinstance(decided(answer, by=replace(rules(languages=("en", "fr")), detect=note)), Interaction)
    assert asked == ["Capital of France?\nIt is  Paris.\nshorter"]
    assert isinstance(decided(answer, by=replace(rules(), detect=note)), Interaction)
    assert len(asked) == 1


@pytest.mark.parametrize("cut", [FinishReason.LENGTH, FinishReason.ABORT])
def test_an_answer_that_was_cut_off_is_left_to_the_learner(cut):
    found = decided(replace(ANSWER, finish_reason=cut))
    assert isinstance(found, Interaction)
    assert found.turn.finish_reason is cut


def test_an_answer_that_read_a_tools_result_is_admitted():
    answer = replace(ANSWER, messages=(*chat("Capital of France?"), *tool_use(result="Paris")))
    assert isinstance(decided(answer), Interaction)


def test_an_answer_known_as_text_alone_is_empty_when_its_text_is():
    text = replace(ANSWER, **AS_TEXT)
    assert isinstance(decided(text), Interaction)
    assert decided(replace(text, response="")) is NotAdmitted.EMPTY_RESPONSE


def test_an_answer_that_was_redacted_is_admitted_without_its_ids():
    redacted = replace(ANSWER, **AS_TEXT | {"redactions": (Redaction(kind="email", n=1),)})
    found = decided(replace(redacted, version_spans=ANSWER.version_spans))
    assert isinstance(found, Interaction)
    assert (found.turn.text_only, found.turn.policy_version) == (True, 3)


def test_two_spans_of_one_version_are_one_version():
    spans = (VersionSpan(policy_version=3, start=0, end=1), VersionSpan(policy_version=3, start=1, end=2))
    assert isinstance(decided(replace(ANSWER, version_spans=spans)), Interaction)


def test_all_interactions_of_a_conversation_share_its_digest():
    first, second, third = dialogue("ann", follow_ups=2)
    by = rules(max_follow_up_chars=100)
    found = [admit(first, reaction_in_turn(first, second), by), admit(second, reaction_in_turn(second, third), by)]
    other = changed(first, user="u")
    found.append(admit(other, reaction_in_turn(other, second), by))
    one, two, other = (each.conversation for each in found if isinstance(each, Interaction))
    assert one == two != other
