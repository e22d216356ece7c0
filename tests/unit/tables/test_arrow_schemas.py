"""Records as Arrow rows and back."""

import math
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.errors import DataError
from sdpo_ray.records import (
    Consent,
    Feedback,
    FinishReason,
    Interaction,
    Message,
    PairingKeys,
    Redaction,
    Role,
    Sampling,
    Thumb,
    ToolCall,
    Turn,
    VersionSpan,
)
from sdpo_ray.tables.arrow_schemas import (
    FEEDBACK,
    TURN,
    content_of,
    feedback_from_arrow,
    feedback_to_arrow,
    interactions_from_arrow,
    interactions_to_arrow,
    split_of,
    turns_from_arrow,
    turns_to_arrow,
)
from tests.support.conversations import turn

ids_of_tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)
redactions = st.lists(st.builds(Redaction, kind=st.text(), n=st.integers(1, 2**40)), min_size=1, max_size=2).map(tuple)


@st.composite
def any_turn(draw: st.DrawFn) -> Turn:
    text_only = draw(st.booleans())
    response_ids = () if text_only else tuple(draw(ids_of_tokens))
    logprobs = st.floats(width=64)
    calls = st.lists(st.builds(ToolCall, call_id=st.text(), name=st.text(), arguments=st.text()), max_size=2)
    before = draw(
        st.lists(
            st.builds(
                Message,
                role=st.sampled_from(Role),
                content=st.text(),
                tool_calls=calls.map(tuple),
                tool_call_id=st.text(),
            )
        )
    )
    return Turn(
        turn_id=draw(st.text()),
        tenant=draw(st.text()),
        user=draw(st.text()),
        conversation_id=draw(st.text()),
        consent=draw(st.sampled_from(Consent)),
        messages=(*before, Message(role=Role.USER, content=draw(st.text()))),
        tools=draw(st.text()),
        template_kwargs=draw(st.text()),
        response=draw(st.text()),
        prompt_ids=() if text_only else tuple(draw(ids_of_tokens)),
        response_ids=response_ids,
        response_logprobs=tuple(draw(logprobs) for _ in response_ids),
        version_spans=tuple(
            VersionSpan(policy_version=draw(st.integers(0, 2**31 - 1)), start=0, end=1)
            for _ in range(0 if text_only else draw(st.integers(1, 3)))
        ),
        finish_reason=draw(st.sampled_from(FinishReason)),
        sampling=Sampling(
            temperature=draw(st.floats(0, 2)),
            top_p=draw(st.floats(0, 1)),
            top_k=draw(st.integers(0, 2**62)),
            max_tokens=draw(st.integers(0, 2**62)),
            seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
            min_p=draw(st.floats(0, 1)),
            presence_penalty=draw(st.floats(-2, 2)),
            frequency_penalty=draw(st.floats(-2, 2)),
            repetition_penalty=draw(st.floats(0.1, 2)),
            constrained=draw(st.booleans()),
        ),
        response_calls=tuple(draw(calls)),
        adapter=draw(st.text()),
        started_at_s=draw(st.floats(0, 1e12)),
        finished_at_s=draw(st.floats(0, 1e12)),
        keys=draw(st.builds(PairingKeys, prompt=st.text(), parent=st.text(), continuation=st.text())),
        redactions=draw(redactions) if text_only else (),
    )


def same(one: Turn, other: Turn) -> bool:
    """Equal, where NaN equals NaN."""
    pairs = zip(one.response_logprobs, other.response_logprobs, strict=True)
    alike = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return alike and replace(one, response_logprobs=other.response_logprobs) == other


@given(st.lists(any_turn(), max_size=4))
@settings(deadline=None, max_examples=60)
def test_a_turn_comes_back_from_arrow_as_it_was(turns):
    table = turns_to_arrow(turns)
    assert table.schema == TURN
    assert all(map(same, turns_from_arrow(table), turns))
    assert table.num_rows == len(turns)


@given(any_turn(), st.text(), st.text(), st.floats(0, 1e12))
@settings(deadline=None, max_examples=30)
def test_an_interaction_comes_back_from_arrow_as_it_was(answered, follow_up, name, at_s):
    made = Interaction(
        interaction_id=answered.turn_id,
        turn=replace(answered, response_logprobs=tuple(-0.5 for _ in answered.response_ids)),
        follow_up=follow_up,
        follow_up_turn_id=name,
        follow_up_at_s=at_s,
        conversation="c",
    )
    assert interactions_from_arrow(interactions_to_arrow([made])) == [made]


@given(
    st.builds(
        Feedback,
        feedback_id=st.text(),
        turn_id=st.text(),
        tenant=st.text(),
        user=st.text(),
        consent=st.sampled_from(Consent),
        comment=st.text().map(lambda text: f"so: {text}"),
        thumb=st.none() | st.sampled_from(Thumb),
        edited=st.text(),
        given_at_s=st.floats(0, 1e12),
        redactions=redactions | st.just(()),
    )
)
@settings(deadline=None, max_examples=30)
def test_feedback_comes_back_from_arrow_as_it_was(given_feedback):
    table = feedback_to_arrow([given_feedback])
    assert table.schema == FEEDBACK
    assert feedback_from_arrow(table) == [given_feedback]


def test_the_light_columns_of_an_interaction_follow_from_it():
    answered = turn("t0", user="k.ann", tenant="acme")
    made = Interaction(
        interaction_id="t0",
        turn=answered,
        follow_up="shorter",
        follow_up_turn_id="t1",
        follow_up_at_s=5.0,
        conversation="c",
    )
    row = interactions_to_arrow([made]).to_pylist()[0]
    assert (row["policy_version"], row["tenant"], row["user"]) == (3, "acme", "k.ann")
    # sha256("held-out c"), its first eight hex digits.
    assert row["split"] == split_of("c") == 0x4D03A60D
    assert row["content"] == content_of(made)
    assert content_of(replace(made, follow_up_at_s=9.0, interaction_id="t9")) == content_of(made)
    assert content_of(replace(made, follow_up="longer")) != content_of(made)


def test_a_value_that_a_row_cannot_hold_is_refused():
    with pytest.raises(DataError, match="does not fit"):
        turns_to_arrow([turn("t0", prompt_ids=(2**40,))])


def test_a_row_that_contradicts_itself_is_refused():
    table = turns_to_arrow([turn("t0")])
    broken = table.set_column(
        TURN.get_field_index("response_ids"), "response_ids", pa.array([[1]], pa.list_(pa.int32()))
    )
    with pytest.raises(DataError, match="1 response ids, 2 log-probs"):
        turns_from_arrow(broken)
