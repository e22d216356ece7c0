"""The digests that pair a follow-up with its answer."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.records import Message, PairingKeys, Role
from tests.support.builders import dialogue, tool_use

KEY = bytes(range(32))


def keys(*texts: str, response: str = "ho", **changes: Any) -> PairingKeys:
    arguments = {"key": KEY, "tenant": "t", "user": "alice", "conversation_id": "", "messages": dialogue(*texts)}
    return pairing_keys(**arguments | {"response": response} | changes)


def test_keys_are_hmacs_over_fields_behind_their_lengths() -> None:
    def by_hand(*fields: bytes) -> str:
        data = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
        return hmac.new(KEY, data, hashlib.sha256).hexdigest()[:32]

    def message(role: str, content: str) -> bytes:
        fields = {"role": role, "content": content, "tool_calls": [], "tool_call_id": ""}
        return json.dumps(fields, separators=(",", ":")).encode()

    hi, ho, more = message("user", "hi"), message("assistant", "ho"), message("user", "more")
    made = keys("hi", "ho", "more", response="so")
    assert made.prompt == by_hand(b"said", b"t", b"alice", b"", hi, ho, more)
    assert made.parent == by_hand(b"said", b"t", b"alice", b"", hi, ho) == keys("hi", response="ho").continuation
    assert made.continuation == by_hand(b"said", b"t", b"alice", b"", hi, ho, more, message("assistant", "so"))
    assert made.conversation == by_hand(b"opening", b"t", b"alice", b"", hi)
    named = keys("hi", conversation_id="c")
    assert named.conversation == by_hand(b"conversation", b"t", b"alice", b"c")


def test_a_follow_up_names_the_answer_it_follows_and_no_other() -> None:
    answer, other = keys("hi", response="ho"), keys("hi", response="hum")
    follow_up = keys("hi", "ho", "shorter")
    assert follow_up.parent == answer.continuation != other.continuation
    assert follow_up.conversation == answer.conversation == other.conversation
    assert answer.prompt == other.prompt != follow_up.prompt


@pytest.mark.parametrize(
    "change", [{"tenant": "u"}, {"user": "bob"}, {"user": ""}, {"conversation_id": "c"}, {"key": b""}]
)
def test_any_change_of_the_caller_or_text_changes_the_keys(change: dict[str, Any]) -> None:
    mine, theirs = (keys("hi", "ho", "more", **each) for each in ({}, change))
    ours = {mine.prompt, mine.parent, mine.continuation, mine.conversation}
    assert ours.isdisjoint({theirs.prompt, theirs.parent, theirs.continuation, theirs.conversation})


def test_only_a_user_message_after_an_assistant_message_is_a_follow_up() -> None:
    system = Message(role=Role.SYSTEM, content="Be brief.")
    assert keys("hi").parent == ""
    assert keys(messages=(system, *dialogue("hi"))).parent == ""
    assert keys(messages=(*dialogue("hi"), *dialogue("ho"))).parent == ""
    used = (*dialogue("Warm?"), *tool_use())
    assert keys(messages=used).parent == ""
    answered = keys(messages=used, response="21 C.").continuation
    history = (*used, Message(role=Role.ASSISTANT, content="21 C."), Message(role=Role.USER, content="In F?"))
    assert keys(messages=history).parent == answered
    for other in (tool_use("c2"), tool_use(result="22 C"), tool_use(arguments='{"city":"Paris"}')):
        assert keys(messages=(*history[:1], *other, *history[3:])).parent != answered


def test_a_conversation_is_the_opening_with_its_system_prompt_unless_it_has_an_id() -> None:
    opening = keys(messages=dialogue("hi", system="Be brief."))
    edited = keys(messages=dialogue("hi", "anything", "else", system="Be brief."))
    assert opening.conversation == edited.conversation != keys("hi").conversation
    assert keys("hi", conversation_id="c").conversation == keys("other", conversation_id="c").conversation


@given(
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)), min_size=2,
             max_size=2, unique=True),
)  # fmt: skip
def test_different_callers_or_openings_have_different_keys(two: list[tuple[str, str, str, str]]) -> None:
    one, other = (
        pairing_keys(key=KEY, tenant=a, user=b, conversation_id=c, messages=dialogue(d), response="")
        for a, b, c, d in two
    )
    assert one.prompt != other.prompt
    assert one.continuation != other.continuation


def test_text_without_a_utf_8_form_has_no_keys() -> None:
    with pytest.raises(UnicodeEncodeError):
        keys("\ud800")
