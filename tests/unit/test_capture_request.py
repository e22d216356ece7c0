"""What a request says of itself, and what may be kept of it."""

import pytest

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.capture.conversation import pseudonym, read_request, text_messages
from sdpo_ray.errors import DataError
from sdpo_ray.records import Consent, Message, Role

TRAIN, NONE = Consent.TRAIN, Consent.NONE


@pytest.mark.parametrize(
    ("header", "metadata", "default", "expected"),
    [
        (None, None, TRAIN, TRAIN),
        (None, None, NONE, NONE),
        ("train", None, NONE, TRAIN),
        (" None ", None, TRAIN, NONE),
        (None, "none", TRAIN, NONE),
        ("train", "none", TRAIN, NONE),
        ("none", "train", TRAIN, NONE),
    ],
)
def test_consent_is_what_was_said_and_the_stricter_word_counts(header, metadata, default, expected):
    headers = {} if header is None else {"x-sdpo-consent": header}
    assert consent_of(headers, None if metadata is None else {"consent": metadata}, default) is expected


def test_consent_in_unknown_words_is_an_error_and_no_guess():
    with pytest.raises(DataError, match="maybe"):
        consent_of({"x-sdpo-consent": "maybe"}, None, TRAIN)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "user", "content": "x"}],
        [{"role": "tool", "content": "42"}, {"role": "user", "content": "x"}],
    ],
)  # fmt: skip
def test_what_is_not_a_text_chat_that_ends_with_the_user_is_not_recorded(messages):
    assert text_messages(messages) == ()


def test_text_parts_are_joined_as_the_engine_joins_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text_messages([{"role": "user", "content": parts}]) == (Message(role=Role.USER, content="a\nb"),)


def test_a_user_is_kept_under_a_pseudonym_that_needs_the_key():
    assert pseudonym("alice", b"k1") == pseudonym("alice", b"k1")
    assert len({pseudonym("alice", b"k1"), pseudonym("alice", b"k2"), pseudonym("bob", b"k1")}) == 3
    assert "alice" not in pseudonym("alice", b"k1")
    assert pseudonym(None, b"k1") == pseudonym("", b"k1") == ""


def test_a_conversation_id_comes_from_header_or_metadata():
    body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"conversation_id": "m"}}
    asked = read_request(body, {"x-sdpo-conversation-id": "h"}, turn_id="t", key=b"k", default=TRAIN, now_s=1.0)
    assert (asked.conversation_id, asked.turn_id, asked.started_at_s) == ("h", "t", 1.0)
    assert read_request(body, {}, turn_id="t", key=b"k", default=TRAIN, now_s=1.0).conversation_id == "m"
