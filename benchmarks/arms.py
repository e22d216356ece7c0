"""One arm of `estimators.py`: the tiny policy learns from one kind of user by the learner's step, then is evaluated."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig, Run
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.distill.data.packing import shard
from sdpo_ray.distill.loss.step import StepPolicy, run_step
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model.attention import PACKED
from sdpo_ray.distill.model.hf_sampling import turn_of
from sdpo_ray.distill.model.load import load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.records import BASE_VERSION, Interaction, Message, Role
from sdpo_ray.simulate.users import PERSONAS, judge, react
from sdpo_ray.simulate.world import Question, is_right, sample_prompt
from sdpo_ray.telemetry import Counters

ARMS: dict[str, dict[str, Any]] = {
    "sampled token (the paper)": {},
    "sampled, centred by sequence": {"signal": {"baseline": "seq_mean"}},
    "sampled, token-KL baseline": {"signal": {"baseline": "token_kl"}},
    "sampled, mixed teacher a = 0.9": {"signal": {"log_mix": 0.9}},
    "top-20 reverse KL with tail": {"signal": {"estimator": "topk_reverse_kl", "top_k": 20}},
    "full reverse KL": {"signal": {"estimator": "full_kl"}},
    "sampled, EMA teacher 0.02": {"teacher": {"kind": "ema", "ema_rate": 0.02}},
    "sampled, frozen teacher": {"teacher": {"kind": "frozen"}},
}
UPDATES, BATCH, NUM_HELD_OUT, MAX_TOKENS = 40, 16, 192, 64
EVALUATED_AT = (5, 15, 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation of one arm and seed."""

    arm: str
    learning_rate: float
    seed: int
    interactions: int
    win_rate: float
    right: float
    tokens: float
    """Mean length of an answer."""


def learn(arm: str, learning_rate: float, seed: int) -> list[Point]:
    """The points of one arm, learning rate and seed."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(f"{seed}/users")
    changes = ARMS[arm]
    signal = {"log_mix": None, "tis_cap": None} | changes.get("signal", {})
    config = DistillConfig(
        learning_rate=learning_rate,
        lora={"rank": 0},  # type: ignore[arg-type]
        signal=signal,
        teacher=changes.get("teacher", {"kind": "live"}),
    )
    base = Run().base
    chat, persona = ChatFormat(base), PERSONAS["concise"]
    model = load_packed(base)
    parameters = list(model.parameters())
    teacher = Teacher(config.teacher, parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    live = config.teacher.kind == "live"
    policy = StepPolicy(
        run=PackedLM(model),
        teacher=teacher.weights,
        baselined=not live,
        own_head=not live,
        device=torch.device("cpu"),
    )
    held_out = _held_out()
    before = _texts(chat, _sample(model, chat, [question.prompt for question in held_out], seed=0))
    points = [_evaluated(arm, learning_rate, seed, 0, held_out, before, before)]
    for update in range(1, UPDATES + 1):
        prompts = [sample_prompt(rng, "train").prompt for _ in range(BATCH)]
        answers = _sample(model, chat, prompts, seed=rng.getrandbits(31))
        follow_ups = [react(persona, text, rng) for text in _texts(chat, answers)]
        batch = examples(
            [_interaction(chat, i, *each) for i, each in enumerate(zip(prompts, answers, follow_ups, strict=True))],
            chat,
            config=config,
            max_model_len=512,
            parent_version=BASE_VERSION,
            refused=Counters.empty(),
        )
        optimizer.zero_grad()
        run_step(shard(batch, rank=0, num_workers=1, max_tokens=4096), policy, config)
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        teacher.follow()
        if update in EVALUATED_AT:
            after = _texts(chat, _sample(model, chat, [question.prompt for question in held_out], seed=0))
            points.append(_evaluated(arm, learning_rate, seed, update * BATCH, held_out, before, after))
    return points


def _held_out() -> list[Question]:
    rng = random.Random("estimators")
    return [sample_prompt(rng, "held_out") for _ in range(NUM_HELD_OUT)]


def _sample(model: Any, chat: ChatFormat, prompts: Sequence[str], *, seed: int) -> list[tuple[int, ...]]:
    """Response ids at temperature 1, the end token included where it was sampled."""
    contexts = [chat.prompt_ids(_messages(prompt)) for prompt in prompts]
    width = max(map(len, contexts))
    ids = torch.tensor([(chat.eos_id,) * (width - len(each)) + each for each in contexts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in contexts])
    model.set_attn_implementation("sdpa")
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=MAX_TOKENS, eos_token_id=chat.eos_id, pad_token_id=chat.eos_id,
        )  # fmt: skip
    model.set_attn_implementation(PACKED)
    answers = []
    for row in output[:, width:].tolist():
        end = row.index(chat.eos_id) + 1 if chat.eos_id in row else len(row)
        answers.append(tuple(row[:end]))
    return answers


def _texts(chat: ChatFormat, answers: Sequence[tuple[int, ...]]) -> list[str]:
    return [chat.text([token for token in answer if token != chat.eos_id]) for answer in answers]


def _interaction(chat: ChatFormat, index: int, prompt: str, answer: tuple[int, ...], follow_up: str) -> Interaction:
    turn = turn_of(
        chat,
        _messages(prompt),
        answer,
        # Unused: no arm corrects for a different sampler.
        (0.0,) * len(answer),
        end_ids=(chat.eos_id,),
        turn_id=f"t{index}",
        policy_version=BASE_VERSION,
        seed=None,
        max_tokens=MAX_TOKENS,
    )
    return Interaction(
        interaction_id=turn.turn_id,
        turn=turn,
        follow_up=follow_up,
        follow_up_turn_id="",
        follow_up_at_s=0.0,
        conversation=turn.turn_id,
    )


def _messages(prompt: str) -> tuple[Message]:
    return (Message(role=Role.USER, content=prompt),)


def _evaluated(
    arm: str,
    rate: float,
    seed: int,
    interactions: int,
    questions: Sequence[Question],
    before: list[str],
    after: list[str],
) -> Point:
    verdicts = [
        judge(PERSONAS["concise"], question.prompt, mine, theirs)
        for question, mine, theirs in zip(questions, after, before, strict=True)
    ]
    wins, losses = verdicts.count("A"), verdicts.count("B")
    return Point(
        arm=arm,
        learning_rate=rate,
        seed=seed,
        interactions=interactions,
        win_rate=wins / (wins + losses) if wins + losses else 0.5,
        right=fmean(is_right(question, text) for question, text in zip(questions, after, strict=True)),
        tokens=fmean(len(text.split()) for text in after),
    )
