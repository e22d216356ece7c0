import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, arange, float64, inference_mode, tensor

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.attribution.token_attribution import (
    assemble,
    noise_floor,
    score,
    token_attributions,
    token_strings,
)
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.distill.model.hf_sampling import sample
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.errors import DataError
from sdpo_ray.records import FinishReason, Interaction, Message, Role, TokenAttribution
from sdpo_ray.simulate.world import sample_prompt
from sdpo_ray.telemetry import Counters
from tests.support.builders import as_text, interaction, tiny_policy, with_turn
from tests.support.paths import CHECKPOINT

ROOM = 1000


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ChatFormat]:
    path = tiny_policy(tmp_path_factory.mktemp("policy"))
    return load_policy(path), ChatFormat(path)


@pytest.fixture(scope="module")
def shipped() -> tuple[object, ChatFormat]:
    return load_policy(CHECKPOINT), ChatFormat(CHECKPOINT)


def whole_sequence(model: Callable[..., object], context: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """log p of each response token from the logits of all positions, in double precision."""
    ids = tensor([[*context, *response]])
    with inference_mode():
        logits = model(input_ids=ids).logits[0].to(float64)
    after = logits - logits.exp().sum(-1, keepdim=True).log()
    first = len(context) - 1
    return after[arange(first, first + len(response)), tensor(response)]


def attributions(policy, *interactions: Interaction, config: DistillConfig | None = None) -> list[TokenAttribution]:
    refused = Counters.empty()
    found = token_attributions(
        *policy, interactions, config=config or DistillConfig(), max_model_len=ROOM, refused=refused
    )
    assert not refused.values
    return found


def test_the_advantages_equal_those_of_whole_sequences(policy):
    model, chat = policy
    asked = interaction(chat, prompt="Why?", response="Because. 🙂", follow_up="Shorter!")
    (found,) = attributions(policy, asked)
    block = asked.turn.messages[0].content + (
        "\n\n=== HINDSIGHT CONTEXT ===\n"
        "[The following is a future user message. Use this to guide your answer to the user prompt.]\nShorter!"
    )
    told = chat.prompt_ids((Message(role=Role.USER, content=block),))
    served = whole_sequence(model, asked.turn.prompt_ids, asked.turn.response_ids)
    hindsight = whole_sequence(model, told, asked.turn.response_ids)
    assert found.logprobs == pytest.approx(served.tolist(), abs=1e-5)
    assert found.advantages == pytest.approx((hindsight - served).tolist(), abs=1e-5)
    assert max(map(abs, found.advantages)) > 0.01
    assert (found.prompt, found.follow_up, found.interaction_id) == ("Why?", "Shorter!", "t0")


def test_the_temperature_of_the_answer_divides_the_logits(policy):
    model, chat = policy
    ids = chat.text_ids("ab")
    flat = score(model, chat.text_ids("x"), ids, 1e6)
    assert flat == pytest.approx([-math.log(model.config.vocab_size)] * len(ids), abs=1e-3)


def test_golden_1_without_a_follow_up_every_advantage_is_exactly_zero(policy):
    for said in ("", " \n"):
        (found,) = attributions(policy, interaction(policy[1], follow_up=said))
        assert set(found.advantages) == {0.0}


def test_masked_and_imported_responses_are_scored_whole(policy):
    cut = with_turn(interaction(policy[1], response="Paris"), finish_reason=FinishReason.LENGTH)
    masked = DistillConfig.model_validate({"context": {"truncated": "mask", "ignore_first_k": 3}})
    (found,) = attributions(policy, cut, config=masked)
    assert len(found.advantages) == len(cut.turn.response_ids)
    (imported,) = attributions(policy, as_text(interaction(policy[1], response="Paris")))
    assert "".join(imported.tokens) == "Paris<|im_end|>"


def test_a_response_whose_prompt_renders_differently_is_counted_and_left_out(policy):
    foreign = with_turn(interaction(policy[1]), prompt_ids=(1, 2, 3))
    refused = Counters.empty()
    found = token_attributions(*policy, [foreign], config=DistillConfig(), max_model_len=ROOM, refused=refused)
    assert (found, dict(refused.values)) == ([], {"prompt_mismatch": 1})


def test_log_probs_that_are_missing_or_not_finite_are_refused(policy):
    _, chat = policy
    asked = interaction(chat, response="a")
    (example,) = examples(
        [asked], chat, config=DistillConfig(), max_model_len=ROOM, parent_version=0, refused=Counters.empty()
    )
    with pytest.raises(DataError, match="2 response tokens, 1 log-probs"):
        assemble(asked, chat, example, logprobs=[-1.0], hindsight_logprobs=[-1.0, -1.0])
    with pytest.raises(DataError, match="not finite"):
        assemble(asked, chat, example, logprobs=[-1.0, -1.0], hindsight_logprobs=[-1.0, -math.inf])
    found = assemble(asked, chat, example, logprobs=[-1.0, -2.0], hindsight_logprobs=[-3.0, -0.5])
    assert found.advantages == (-2.0, 1.5)


def test_a_character_of_several_tokens_is_on_the_first_and_the_others_are_empty(policy):
    _, chat = policy
    ids = chat.text_ids("a🙂é")
    assert len(ids) == 1 + 4 + 2
    assert token_strings(chat, ids) == ("a", "🙂", "", "", "", "é", "")


def test_bytes_of_no_character_become_u_fffd_and_leave_other_tokens_as_they_are(policy):
    _, chat = policy
    torn = chat.text_ids("🙂")[:2]
    strings = token_strings(chat, (*torn, *chat.text_ids("abcd")))
    assert strings[2:] == ("a", "b", "c", "d")
    assert set("".join(strings[:2])) == {"\ufffd"}


def test_a_replacement_character_in_the_text_itself_appears_once(policy):
    _, chat = policy
    assert "".join(token_strings(chat, chat.text_ids("a\ufffdb"))) == "a\ufffdb"


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_the_strings_of_any_text_join_to_the_text(shipped, text: str):
    _, chat = shipped
    ids = chat.text_ids(text)
    strings = token_strings(chat, ids)
    assert len(strings) == len(ids)
    assert "".join(strings) == chat.text(ids)


def test_the_noise_floor_is_that_of_single_precision(shipped):
    assert 0 < noise_floor(*shipped) < 1e-4


def test_a_sampled_response_has_its_sampling_log_probs_and_is_determined_by_the_seed(shipped):
    model, chat = shipped
    asked = (Message(role=Role.USER, content="What is the capital of France?"),)
    turns = [
        sample(model, chat, asked, turn_id="t", policy_version=0, seed=seed, max_tokens=64) for seed in (1, 1, 2, 3, 4)
    ]
    assert turns[0] == turns[1]
    assert len({turn.response_ids for turn in turns}) > 1
    for turn in turns:
        assert turn.response_ids[-1] == chat.eos_id
        assert turn.response in chat.text(turn.response_ids)
        assert "Paris" in turn.response
        expected = whole_sequence(model, turn.prompt_ids, turn.response_ids).tolist()
        assert turn.response_logprobs == pytest.approx(expected, abs=1e-4)
    short = sample(model, chat, asked, turn_id="t", policy_version=0, seed=1, max_tokens=2)
    assert (short.finish_reason, short.response_ids) == (FinishReason.LENGTH, turns[0].response_ids[:2])


def test_golden_2_a_complaint_has_a_far_larger_effect_than_unrelated_texts(shipped):
    """Measured over 50 answers: mean |A| is 0.259 nats for the complaint, 0.055 and 0.039 for the others."""
    model, chat = shipped
    rng = random.Random(0)
    turns = [
        sample(
            model,
            chat,
            (Message(role=Role.USER, content=sample_prompt(rng, "held_out").prompt),),
            turn_id=f"t{index}",
            policy_version=0,
            seed=index,
            max_tokens=64,
        )
        for index in range(32)
    ]
    asked = [replace(interaction(chat, name=turn.turn_id), turn=turn) for turn in turns]

    def mean_size(follow_up: str) -> float:
        found = attributions((model, chat), *(replace(each, follow_up=follow_up) for each in asked))
        return sum(sum(map(abs, each.advantages)) / len(each.advantages) for each in found) / len(found)

    complaint = mean_size("Shorter please.")
    assert complaint > 2.5 * mean_size("What is 27*4?")
    assert complaint > 2.5 * mean_size("Thanks.")
    assert mean_size(" ") == 0.0
