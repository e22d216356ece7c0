"""The recipe of the laptop policy: its corpus, its tokenizer, its training, and the checkpoint it left."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from inspect import signature

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo_ray.chat import HINDSIGHT_BLOCKS
from sdpo_ray.simulate.phrases import HELD_OUT_PRAISES, WORDINGS
from sdpo_ray.simulate.tiny_policy import CHECKPOINT
from sdpo_ray.simulate.tiny_policy.corpus import CorpusConversation, sample_conversation, with_hindsight
from sdpo_ray.simulate.tiny_policy.model import answer_loss
from sdpo_ray.simulate.tiny_policy.recipe import Recipe
from sdpo_ray.simulate.tiny_policy.tokenizer import encode
from sdpo_ray.simulate.tiny_policy.train import main, save, train
from sdpo_ray.simulate.world import FACTS, find_question, is_right, questions, style_of

SMALL = Recipe(
    batch_size=8,
    num_steps=24,
    learning_rate=1e-2,
    vocab_size=400,
    hidden_size=64,
    num_layers=1,
    num_tokenizer_conversations=300,
    num_measured_prompts=4,
    num_final_prompts=4,
    measure_every_steps=12,
)
COMPLAINTS = {wish: frozenset(phrases.complaints) for wish, phrases in WORDINGS.items()}


def _as_json(recipe):
    return json.loads(json.dumps(asdict(recipe)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small():
    return train(SMALL)


@pytest.fixture(scope="module")
def conversations():
    rng = random.Random(0)
    return [sample_conversation(rng) for _ in range(4_000)]


def test_a_plain_question_is_answered_in_every_style_about_equally_often(conversations):
    plain = [c.turns for c in conversations if len(c.turns) == 2 and "HINDSIGHT" not in c.turns[0]]
    styles = [style_of(reply) for _, reply in plain]
    assert 0.32 < len(plain) / len(conversations) < 0.38
    assert all(0.28 < share / len(plain) < 0.39 for share in Counter(style.length for style in styles).values())
    for attribute in ("filler", "emoji", "bold"):
        assert 0.45 < sum(getattr(style, attribute) for style in styles) / len(plain) < 0.55


def test_every_answer_to_a_question_is_right(conversations):
    for turns in (c.turns for c in conversations):
        for message, reply in zip(turns[::2], turns[1::2], strict=True):
            asked = message.split(HINDSIGHT_BLOCKS["online"])[0]
            if find_question(asked):
                assert is_right(asked, reply), turns


def test_an_answer_obeys_every_complaint_that_it_has_read(conversations):
    obeyed = 0
    for turns in (c.turns for c in conversations):
        named = []
        for message, reply in zip(turns[::2], turns[1::2], strict=True):
            if "HINDSIGHT" in message or not find_question(message):
                follow_up = message.rpartition("user prompt.]\n")[2]
                named += [wish for wish, texts in COMPLAINTS.items() if any(text in follow_up for text in texts)]
            for wish in named:
                assert wish.is_granted_by(style_of(reply)), turns
                obeyed += 1
    assert obeyed > 1_500


def test_pre_training_never_hears_what_is_held_out(conversations):
    corpus = "\n".join(text for c in conversations for text in c.turns)
    held_out = [text for phrases in WORDINGS.values() for text in phrases.held_out_complaints]
    held_out += [*HELD_OUT_PRAISES, *(question.prompt for question in questions("held_out"))]
    assert [text for text in held_out if text in corpus] == []


def test_the_hindsight_block_ends_the_question():
    assert with_hindsight("What does a cow say?", " Too long.\n") == (
        "What does a cow say?\n\n=== HINDSIGHT CONTEXT ===\n"
        "[The following is a future user message. Use this to guide your answer to the user prompt.]\nToo long."
    )


def test_an_example_is_what_the_chat_template_renders_and_learns_the_answers_alone(small, conversations):
    tokenizer = small.tokenizer
    for conversation in conversations[:200]:
        roles = ("user", "assistant") * 4
        chat = [{"role": role, "content": text} for role, text in zip(roles, conversation.turns, strict=False)]
        if conversation.system:
            chat.insert(0, {"role": "system", "content": conversation.system})
        example = encode(tokenizer, conversation)
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        assert list(example.ids) == tokenizer.encode(rendered, add_special_tokens=False)
        learned = [token for token, learn in zip(example.ids, example.learned, strict=True) if learn]
        assert tokenizer.decode(learned) == "".join(f"{text}<|im_end|>" for text in conversation.turns[1::2])


def test_the_loss_is_the_mean_over_answer_tokens_whatever_the_padding(small):
    examples = [
        encode(small.tokenizer, CorpusConversation(turns=("What does a cow say?", "Moo."))),
        encode(
            small.tokenizer, CorpusConversation(turns=("Name the capital of Peru.", "The capital of Peru is **Lima**."))
        ),
    ]
    total, count = 0.0, 0
    for example in examples:
        logits = small.model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        for position in range(1, len(example.ids)):
            if example.learned[position]:
                total -= logits[position - 1, example.ids[position]].item()
                count += 1
    assert answer_loss(small.model, examples, 0).item() == pytest.approx(total / count, rel=1e-5)


def test_a_few_steps_lower_the_loss(small):
    first, last = small.measurements
    assert (first.step, last.step) == (12, 24)
    assert last.loss < first.loss - 0.5


def test_the_command_line_trains_the_recipe_by_default():
    assert signature(main).parameters["steps"].default == Recipe().num_steps
    assert signature(main).parameters["seed"].default == Recipe().seed


def test_the_same_seed_makes_the_same_weights_and_another_seed_does_not(small):
    again, other = train(SMALL).model.state_dict(), train(replace(SMALL, seed=1)).model.state_dict()
    weights = small.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["model.norm.weight"], other["model.norm.weight"])


def test_a_saved_policy_is_loaded_as_it_was(small, tmp_path):
    save(small, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi 😊"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi 😊<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert torch.equal(model(torch.tensor([ids])).logits, small.model(torch.tensor([ids])).logits)
    assert json.loads((tmp_path / "training.json").read_text())["recipe"] == _as_json(SMALL)
    assert (tmp_path / "training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_checkpoint_was_made_by_this_recipe_and_meets_its_floors():
    record = json.loads((CHECKPOINT / "training.json").read_text())
    assert record["recipe"] == _as_json(Recipe())
    final = record["measurements"][-1]
    assert final["step"] == Recipe().num_steps
    assert final["right"] >= 0.98
    assert final["oracle_violations"] <= 0.4
    assert 1.5 <= final["base_violations"] <= 1.8


def test_the_committed_checkpoint_changes_no_sampling_parameter():
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert not {"temperature", "top_k", "top_p", "do_sample", "repetition_penalty"} & set(generation)
    assert generation["eos_token_id"] == AutoTokenizer.from_pretrained(CHECKPOINT).eos_token_id


def test_every_answer_is_one_token_to_the_committed_tokenizer():
    # One token, one decision: a capital spelt in pieces may begin as Paris and end as Prague.
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    words = [word for fact in FACTS for word in (f" {fact.answer}", fact.answer[0].upper() + fact.answer[1:])]
    assert [word for word in words if len(tokenizer.encode(word, add_special_tokens=False)) != 1] == []


def test_the_committed_policy_knows_every_fact_in_a_phrasing_it_never_saw():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(CHECKPOINT), AutoTokenizer.from_pretrained(CHECKPOINT)
    right = 0
    for question in questions("held_out")[::3]:
        chat = [{"role": "user", "content": question.prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        reply = model.generate(**inputs, do_sample=False, max_new_tokens=48)[0, inputs["input_ids"].shape[1] :]
        right += is_right(question, tokenizer.decode(reply, skip_special_tokens=True))
    assert right >= 70
