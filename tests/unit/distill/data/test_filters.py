"""Interactions that cannot be trained on, by reason."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.records import FinishReason, Interaction, Redaction, VersionSpan
from tests.support.builders import TOOL_CHATML, as_text, dialogue, interaction, tiny_policy, with_turn
from tests.support.examples import of_version, read_examples, read_one, refusal_of


def test_a_prompt_that_renders_differently_today_is_refused_also_where_it_would_be_cut(chat: ChatFormat) -> None:
    served = interaction(chat, history=dialogue("a", "b"))
    other = with_turn(served, prompt_ids=served.turn.prompt_ids[1:])
    assert refusal_of(chat, other) == "prompt_mismatch"
    assert refusal_of(chat, other, max_messages=1) == "prompt_mismatch"


def test_messages_that_the_template_refuses_are_refused(chat: ChatFormat, tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TOOL_CHATML
    strict_chat = ChatFormat(tiny_policy(tmp_path, template=strict))
    assert read_one(strict_chat, interaction(strict_chat)).first_scored == 0
    with_system = interaction(chat, history=dialogue(system="Be kind."))
    assert refusal_of(strict_chat, with_system) == "template_error"
    odd = with_turn(interaction(strict_chat), tools="[" * 100_000)
    assert refusal_of(strict_chat, odd) == "template_error"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_log_prob_that_is_not_finite_is_refused(chat: ChatFormat, bad: float) -> None:
    served = interaction(chat)
    poisoned = (*served.turn.response_logprobs[:-1], bad)
    assert refusal_of(chat, with_turn(served, response_logprobs=poisoned)) == "non_finite_logprob"


def test_a_zero_length_answer_is_refused(chat: ChatFormat) -> None:
    silent = with_turn(interaction(chat), response_ids=(), response_logprobs=())
    assert refusal_of(chat, silent) == "empty_response"
    assert refusal_of(chat, as_text(interaction(chat), response=""), text_only="train") == "empty_response"


def test_an_imported_text_is_refused_or_tokenized(chat: ChatFormat) -> None:
    served = interaction(chat, temperature=0.5)
    assert refusal_of(chat, as_text(served)) == "text_only"
    expected = replace(read_one(chat, served), temperature=1.0, sampler_logprobs=())
    assert read_one(chat, as_text(served), text_only="train") == expected
    cut = as_text(served, finish_reason=FinishReason.LENGTH)
    assert read_one(chat, cut, text_only="train", truncated="train").response_ids == expected.response_ids[:-1]


def _redacted(served: Interaction, **changes: object) -> Interaction:
    unknown = {"prompt_ids": (), "response_ids": (), "response_logprobs": ()}
    return with_turn(served, **unknown, redactions=(Redaction(kind="email", n=1),), **changes)


def test_redacted_and_imported_turns_are_refused_independently(chat: ChatFormat) -> None:
    redacted = _redacted(interaction(chat, prompt="Write to [email]."))
    assert refusal_of(chat, redacted) == "redacted"
    assert refusal_of(chat, redacted, text_only="train") == "redacted"
    of_elsewhere = with_turn(redacted, version_spans=())
    assert refusal_of(chat, of_elsewhere, redacted="train") == "text_only"
    assert refusal_of(chat, of_elsewhere, text_only="train") == "redacted"
    assert read_one(chat, of_elsewhere, redacted="train", text_only="train").temperature == 1.0


def test_a_redacted_turn_is_rendered_from_its_text_at_the_temperature_and_age_it_has(chat: ChatFormat) -> None:
    served = interaction(chat, prompt="Write to [email].", temperature=0.5)
    expected = replace(read_one(chat, served), sampler_logprobs=())
    assert read_one(chat, _redacted(served), redacted="train") == expected
    assert (expected.temperature, expected.response_ids[-1]) == (0.5, chat.eos_id)
    config = DistillConfig.model_validate(
        {"context": {"redacted": "train"}, "signal": {"max_staleness": 8, "staleness_half_life": 4}}
    )
    span = (VersionSpan(policy_version=4, start=0, end=6),)
    assert read_one(chat, _redacted(served, version_spans=span), config=config, parent_version=12).weight == 0.25
    assert refusal_of(chat, _redacted(served, version_spans=span), config=config, parent_version=13) == "stale"
    assert refusal_of(chat, _redacted(served, response=""), redacted="train") == "empty_response"


def test_refusals_are_counted_by_reason_and_the_rest_keeps_its_order(chat: ChatFormat) -> None:
    silent = with_turn(interaction(chat, name="b"), response_ids=(), response_logprobs=())
    usable, refused = read_examples(chat, interaction(chat, name="a"), silent, interaction(chat, name="c"))
    assert [found.interaction_id for found in usable] == ["a", "c"]
    assert refused == {"empty_response": 1}


def test_ten_thousand_copies_are_reduced_to_a_few_quickly(chat: ChatFormat) -> None:
    served = interaction(chat, history=dialogue("a" * 300, "b" * 300))
    copies = [replace(served, interaction_id=f"copy {i}") for i in range(10_000)]
    other = interaction(chat, name="other", follow_up="Longer please.")
    began = time.process_time()
    usable, refused = read_examples(chat, *copies, other, max_copies=3)
    assert time.process_time() - began < 5
    assert [found.interaction_id for found in usable] == ["copy 0", "copy 1", "copy 2", "other"]
    assert refused == {"duplicate": 9997}


def test_copies_that_are_not_trainable_do_not_count_as_copies(chat: ChatFormat) -> None:
    stale, fresh = of_version(chat, 0), of_version(chat, 9)
    usable, refused = read_examples(chat, stale, stale, fresh, max_copies=1, parent_version=9)
    assert (len(usable), refused) == (1, {"stale": 2})
