"""Redaction of turns and feedback."""

import json
from dataclasses import replace

import pytest

from sdpo_ray.capture.feedback import MAX_COMMENT_CHARS, MAX_EDITED_CHARS
from sdpo_ray.errors import TooManyDigits
from sdpo_ray.records import (
    Consent,
    Feedback,
    FinishReason,
    Message,
    PairingKeys,
    Redaction,
    Role,
    Sampling,
    ToolCall,
    Turn,
    VersionSpan,
)
from sdpo_ray.redaction import EntityType, Redactor, redact_feedback, redact_turn
from sdpo_ray.redaction.turns import MAX_DIGITS

REDACTOR = Redactor(tuple(EntityType), phone_regions=("US", "GB", "DE"))
VICTIM = "jane@example.com"


def turn(**changes: object) -> Turn:
    whole = Turn(
        turn_id="t0",
        tenant="tenant",
        user="k1.aa",
        conversation_id="",
        consent=Consent.TRAIN,
        messages=(Message(role=Role.USER, content="Hello"),),
        response="Hi",
        prompt_ids=(1, 2, 3),
        response_ids=(4, 5),
        response_logprobs=(-0.5, -0.25),
        version_spans=(VersionSpan(policy_version=7, start=0, end=2),),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=0.5, top_p=1.0, top_k=0, max_tokens=64, seed=None),
        started_at_s=1.0,
        finished_at_s=2.0,
        keys=PairingKeys(prompt="p", parent="q", continuation="c", conversation="v"),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def feedback(**changes: object) -> Feedback:
    whole = Feedback(
        feedback_id="f0", turn_id="t0", tenant="", user="", consent=Consent.TRAIN, comment="Shorter.", given_at_s=1.0
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_turn_without_entities_is_the_same_object() -> None:
    clean = turn()
    assert redact_turn(clean, REDACTOR) is clean


def test_a_redacted_turn_loses_ids_and_log_probs_and_keeps_everything_else() -> None:
    asked = (Message(role=Role.SYSTEM, content="Be kind."), Message(role=Role.USER, content=f"I am {VICTIM}."))
    written = redact_turn(turn(messages=asked, response=f"Hi {VICTIM} at 10.1.2.3"), REDACTOR)
    assert written == turn(
        messages=(asked[0], replace(asked[1], content="I am [email].")),
        response="Hi [email] at [ip]",
        prompt_ids=(),
        response_ids=(),
        response_logprobs=(),
        redactions=(Redaction(kind="email", n=2), Redaction(kind="ip", n=1)),
    )
    assert (written.policy_version, written.sampling.temperature, written.keys.prompt) == (7, 0.5, "p")
    assert redact_turn(written, REDACTOR) is written


CALL = ToolCall(call_id=VICTIM, name="look_up", arguments=json.dumps({"mail": VICTIM, "card": 4111111111111111}))
PLACES = {
    "a message": {"messages": (Message(role=Role.USER, content=VICTIM),)},
    "a call": {
        "messages": (
            Message(role=Role.USER, content="Hello"),
            Message(role=Role.ASSISTANT, content="", tool_calls=(CALL,)),
            Message(role=Role.TOOL, content="found", tool_call_id=VICTIM),
        )
    },
    "tools": {"tools": json.dumps([{"type": "function", "function": {"name": "f", "description": VICTIM}}])},
    "template_kwargs": {"template_kwargs": json.dumps({"documents": [{VICTIM: 1}]})},
    "the answer": {"response": VICTIM},
    "a call in the answer": {"response_calls": (CALL,)},
}


@pytest.mark.parametrize("place", PLACES)
def test_every_text_of_a_turn_is_redacted(place: str) -> None:
    written = redact_turn(turn(**PLACES[place]), REDACTOR)
    assert VICTIM not in repr(written)
    assert "4111111111111111" not in repr(written)
    assert written.text_only


def test_a_tools_result_keeps_the_id_of_its_call_and_arguments_stay_json() -> None:
    written = redact_turn(turn(**PLACES["a call"]), REDACTOR)
    (call,) = written.messages[1].tool_calls
    assert call.call_id == written.messages[2].tool_call_id == "[email]"
    assert json.loads(call.arguments) == {"mail": "[email]", "card": "[card]"}
    assert written.redactions == (Redaction(kind="card", n=1), Redaction(kind="email", n=3))


def test_an_answer_in_json_stays_json_and_its_escapes_hide_nothing() -> None:
    written = redact_turn(turn(response=' {"card": 4111111111111111, "mail": "jane\\u0040example.com"}'), REDACTOR)
    assert written.response == ' {"card": "[card]", "mail": "[email]"}'
    assert redact_turn(turn(response="{jane@example.com}"), REDACTOR).response == "{[email]}"


def test_equal_messages_are_redacted_alike_whatever_is_around_them() -> None:
    question = Message(role=Role.USER, content="Call 202-555-0123, or 2025550123?")
    alone = redact_turn(turn(messages=(question,)), REDACTOR)
    later = redact_turn(turn(messages=(question, Message(role=Role.ASSISTANT, content=VICTIM), question)), REDACTOR)
    assert alone.messages[0] == later.messages[0] == later.messages[2]


def test_a_turn_redacted_once_is_redacted_further_by_a_redactor_of_other_kinds() -> None:
    first = redact_turn(turn(response=f"{VICTIM} 10.1.2.3"), Redactor(["email"]))
    assert redact_turn(first, REDACTOR).redactions == (Redaction(kind="email", n=1), Redaction(kind="ip", n=1))


def test_feedback_with_entities_is_redacted() -> None:
    clean = feedback()
    assert redact_feedback(clean, REDACTOR) is clean
    written = redact_feedback(feedback(comment=f"Ask {VICTIM}", edited="Call +44 20 7946 0958"), REDACTOR)
    assert written == feedback(
        comment="Ask [email]",
        edited="Call [phone]",
        redactions=(Redaction(kind="email", n=1), Redaction(kind="phone", n=1)),
    )
    assert redact_feedback(written, REDACTOR) is written


def test_too_many_digits_over_all_texts_of_a_record_are_refused() -> None:
    half = Message(role=Role.USER, content="12.5, " * (MAX_DIGITS // 5))
    assert redact_turn(turn(messages=(half,), response="7" * 9), REDACTOR).response == "7" * 9
    for texts in ({"messages": (half, half)}, {"messages": (half,), "response": half.content}):
        with pytest.raises(TooManyDigits, match="more than 50000 digits"):
            redact_turn(turn(**texts), Redactor(("email",)))
    with pytest.raises(TooManyDigits):
        redact_feedback(feedback(edited="1" * (MAX_DIGITS + 1)), REDACTOR)


def test_feedback_accepted_over_http_never_has_too_many_digits() -> None:
    assert MAX_COMMENT_CHARS + MAX_EDITED_CHARS <= MAX_DIGITS
