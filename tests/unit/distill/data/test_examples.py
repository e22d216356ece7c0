"""Responses of examples: end tokens, masks, temperature, weight.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import HINDSIGHT
from sdpo_ray.records import FOREIGN, FinishReason, Interaction, Sampling
from tests.support.builders import as_text, interaction, tiny_policy, with_turn
from tests.support.examples import of_version, read_examples, read_one, refusal_of


def _cut(before: Interaction, how: FinishReason = FinishReason.LENGTH) -> Interaction:
    """`before` cut off before its end token, by the token limit or by the client."""
    ids, logprobs = before.turn.response_ids[:-1], before.turn.response_logprobs[:-1]
    return with_turn(before, response_ids=ids, response_logprobs=logprobs, finish_reason=how)


def test_golden_17_the_end_token_is_scored_only_where_it_was_emitted(chat: ChatFormat) -> None:
    text, end = chat.text_ids("Paris"), (chat.eos_id,)
    assert read_one(chat, interaction(chat)).response_ids == text + end
    assert read_one(chat, _cut(interaction(chat)), truncated="train").response_ids == text


@pytest.mark.parametrize("how", [FinishReason.LENGTH, FinishReason.ABORT])
def test_golden_17_a_truncated_answer_is_masked_trained_or_dropped_by_name(chat: ChatFormat, how: FinishReason) -> None:
    cut = _cut(interaction(chat), how)
    (masked,), counts = read_examples(chat, cut, truncated="mask")
    assert (masked.first_scored, counts) == (len("Paris"), {"truncated_masked": 1})
    (trained,), counts = read_examples(chat, cut, truncated="train")
    assert (trained.first_scored, counts) == (0, {})
    assert trained.sampler_logprobs == cut.turn.response_logprobs
    assert refusal_of(chat, cut, truncated="drop") == "truncated"
    assert read_one(chat, interaction(chat), truncated="drop").first_scored == 0


@pytest.mark.parametrize("k", [0, 1, 5, 6, 7, 100])
def test_golden_17_the_first_k_tokens_are_counted_in_each_sequence(chat: ChatFormat, k: int) -> None:
    found, _ = read_examples(
        chat, interaction(chat, name="a"), interaction(chat, name="b", response="No"), ignore_first_k=k
    )
    assert [each.first_scored for each in found] == [min(k, 6), min(k, 3)]


@pytest.mark.parametrize("k", [6, 100])
@pytest.mark.parametrize("normalize", ["seq_mean_token_mean", "token_mean", "token_sum"])
def test_golden_17_an_answer_without_scored_tokens_gives_no_nan(tmp_path: Path, normalize: str, k: int) -> None:
    import torch

    from sdpo_ray.distill.data.packing import rows
    from sdpo_ray.distill.loss.step import StepPolicy, run_step
    from sdpo_ray.distill.model.load import load_packed
    from sdpo_ray.distill.model.packed_lm import PackedLM

    path = tiny_policy(tmp_path)
    chat, model = ChatFormat(path), load_packed(path)
    values = {"preset": "paper_online", "context": {"ignore_first_k": k}, "signal": {"normalize": normalize}}
    config = DistillConfig.model_validate(values)
    short, long = interaction(chat, name="a"), interaction(chat, name="b", response="Nothing")
    found, _ = read_examples(chat, short, long, config=config)
    assert rows(tuple(found), HINDSIGHT).target_N.tolist() == list(found[1].response_ids[k:])
    policy = StepPolicy(
        run=PackedLM(model),
        device=torch.device("cpu"),
    )
    sums = run_step([tuple(found)], policy, config)
    assert (sums.num_sequences, sums.num_tokens) == (2, max(0, 8 - k))
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) is (k < 8)


def test_golden_17_pad_text_and_pad_ids_in_an_answer_are_tokens_like_others(chat: ChatFormat) -> None:
    (pad,) = chat.text_ids("<|endoftext|>")
    ids = (pad, *chat.text_ids("a"), pad, chat.eos_id, pad)
    served = with_turn(interaction(chat), response_ids=ids, response_logprobs=(-1.0,) * len(ids))
    found = read_one(chat, served, ignore_first_k=1)
    assert (found.response_ids, found.first_scored) == (ids, 1)
    (written,) = read_examples(chat, as_text(interaction(chat, response="<|endoftext|>")), text_only="train")[0]
    assert pad not in written.response_ids
    assert chat.text(written.response_ids[:-1]).replace("\u200b", "") == "<|endoftext|>"


def test_golden_17_the_end_token_may_be_the_pad_token(tmp_path: Path) -> None:
    path = tiny_policy(tmp_path)
    stated = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(stated | {"pad_token": stated["eos_token"]}))
    chat = ChatFormat(path)
    found = read_one(chat, interaction(chat))
    assert found.response_ids[-1] == chat.eos_id == chat._tokenizer.pad_token_id
    assert found.first_scored == 0
    assert read_one(chat, as_text(interaction(chat)), text_only="train").response_ids == found.response_ids


@pytest.mark.parametrize(
    ("sampling", "temperature", "comparable"),
    [
        ({"temperature": 1.0}, 1.0, True),
        ({"temperature": 0.7}, 0.7, True),
        ({"temperature": 0.0}, 1.0, False),
        ({"top_p": 0.9}, 1.0, False),
        ({"top_k": 20}, 1.0, False),
        ({"min_p": 0.1}, 1.0, False),
        ({"presence_penalty": 0.5}, 1.0, False),
        ({"frequency_penalty": -0.5}, 1.0, False),
        ({"repetition_penalty": 1.2}, 1.0, False),
        ({"constrained": True, "temperature": 0.5}, 0.5, False),
        ({"seed": 7, "max_tokens": 3}, 1.0, True),
    ],
)
def test_golden_27_the_temperature_is_the_one_that_the_engine_applied(
    chat: ChatFormat, sampling: dict[str, float], temperature: float, comparable: bool
) -> None:
    plain = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64, seed=None)
    served = with_turn(interaction(chat), sampling=replace(plain, **sampling))
    found = read_one(chat, served)
    assert found.temperature == temperature
    assert found.sampler_logprobs == (served.turn.response_logprobs if comparable else ())


def test_golden_12_a_response_over_the_staleness_limit_is_refused_and_under_it_weighted(chat: ChatFormat) -> None:
    config = DistillConfig.model_validate({"signal": {"max_staleness": 8, "staleness_half_life": 4}})
    weights = {v: read_one(chat, of_version(chat, v), config=config, parent_version=12).weight for v in (4, 8, 12, 13)}
    assert weights == {4: 0.25, 8: 0.5, 12: 1.0, 13: 1.0}
    assert refusal_of(chat, of_version(chat, 3), config=config, parent_version=12) == "stale"
    unweighed = DistillConfig.model_validate({"signal": {"max_staleness": "none"}})
    assert read_one(chat, of_version(chat, 0), config=unweighed, parent_version=10**6).weight == 1.0


def test_an_imported_answer_has_no_age(chat: ChatFormat) -> None:
    config = DistillConfig.model_validate(
        {"context": {"text_only": "train"}, "signal": {"max_staleness": 0, "staleness_half_life": 1}}
    )
    foreign = as_text(interaction(chat))
    assert foreign.turn.policy_version == FOREIGN
    assert read_one(chat, foreign, config=config, parent_version=100).weight == 1.0
