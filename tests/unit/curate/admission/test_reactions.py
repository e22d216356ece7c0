from dataclasses import replace

from sdpo_ray.curate.admission.reactions import Reaction, reaction_in_comment
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.records import Consent, Feedback
from tests.support.conversations import turn

ANSWER = turn("t1", "Capital of France?", tenant="shop", user="k1.ann")
GIVEN = Feedback(
    feedback_id="f1",
    turn_id="t1",
    tenant="shop",
    user="k1.ann",
    consent=Consent.TRAIN,
    comment=" Say it in a sentence. ",
    given_at_s=500.0,
)


def test_a_comment_is_a_reaction_word_for_word():
    assert reaction_in_comment(ANSWER, GIVEN) == Reaction(
        interaction_id="f1", text=" Say it in a sentence. ", source_id="f1", consent=Consent.TRAIN, at_s=500.0
    )


def test_consent_to_the_comment_goes_with_it():
    reaction = reaction_in_comment(ANSWER, replace(GIVEN, consent=Consent.NONE))
    assert isinstance(reaction, Reaction)
    assert reaction.consent is Consent.NONE


def test_a_comment_on_an_unknown_turn_is_refused():
    assert reaction_in_comment(None, GIVEN) is NotAdmitted.UNKNOWN_TURN


def test_a_comment_of_another_tenant_or_user_is_refused():
    assert reaction_in_comment(ANSWER, replace(GIVEN, tenant="bank")) is NotAdmitted.NOT_THEIRS
    assert reaction_in_comment(ANSWER, replace(GIVEN, user="k1.bob")) is NotAdmitted.NOT_THEIRS
    unrotated = replace(ANSWER, user="ann"), replace(GIVEN, user="bob")
    assert reaction_in_comment(*unrotated) is NotAdmitted.NOT_THEIRS


def test_pseudonyms_under_two_keys_are_not_compared():
    assert isinstance(reaction_in_comment(ANSWER, replace(GIVEN, user="k2.ann")), Reaction)
    assert reaction_in_comment(ANSWER, replace(GIVEN, user="k2.ann", tenant="bank")) is NotAdmitted.NOT_THEIRS


def test_an_anonymous_client_that_knows_a_turns_id_may_comment_on_it():
    assert isinstance(reaction_in_comment(ANSWER, replace(GIVEN, user="")), Reaction)
    assert isinstance(reaction_in_comment(replace(ANSWER, user=""), GIVEN), Reaction)
