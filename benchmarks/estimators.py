"""Estimators, baselines and teachers compared on the tiny policy: python benchmarks/estimators.py --jobs 2

Each arm learns from the same kind of user (the persona `concise`) for 40 updates of 16 fresh answers each, with the
learner's own step, over several seeds. Win rate is against the base on held-out prompts, ties dropped; right is the
share of right answers on them. An interval is Student's t over seeds.
"""

import json
import math
import os
import random
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

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
UPDATES, BATCH, NUM_HELD_OUT = 40, 16, 192
EXAMINED = (5, 15, 40)
# Two-sided 95 % of Student's t, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One examination of one arm and seed."""

    arm: str
    learning_rate: float
    seed: int
    interactions: int
    win_rate: float
    right: float
    tokens: float
    """Mean length of an answer."""


def learn(arm: str, learning_rate: float, seed: int) -> list[Point]:
    """One arm, one seed."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    from sdpo_ray.chat import ChatFormat
    from sdpo_ray.config import Distill, Run
    from sdpo_ray.distill.hindsight import examples
    from sdpo_ray.distill.load import load_packed
    from sdpo_ray.distill.packing import shard
    from sdpo_ray.distill.scorer import Scorer
    from sdpo_ray.distill.step import Policy, run_step
    from sdpo_ray.distill.teacher import Teacher
    from sdpo_ray.simulate.users import PERSONAS, react
    from sdpo_ray.simulate.world import sample_prompt
    from sdpo_ray.telemetry import Counters

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(f"{seed}/users")
    changes = ARMS[arm]
    signal = {"log_mix": None, "tis_cap": None} | changes.get("signal", {})
    config = Distill(
        learning_rate=learning_rate,
        lora={"rank": 0},  # type: ignore[arg-type]
        signal=signal,  # type: ignore[arg-type]
        teacher=changes.get("teacher", {"kind": "live"}),
    )
    base = Run().base
    chat, persona = ChatFormat(base), PERSONAS["concise"]
    model = load_packed(base)
    parameters = list(model.parameters())
    teacher = Teacher(config.teacher, parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    live = config.teacher.kind == "live"
    policy = Policy(
        run=Scorer(model),
        backward=lambda loss, last: loss.backward(),
        teacher=nullcontext if live else teacher.weights,
        total=lambda tensor: tensor,
        baselined=not live,
        own_head=not live,
        base_logprobs={},
        device=torch.device("cpu"),
    )
    held_out = _held_out()
    before = _texts(chat, _sample(model, chat, [question.prompt for question in held_out], seed=0))
    points = [_examined(arm, learning_rate, seed, 0, held_out, before, before)]
    for update in range(1, UPDATES + 1):
        asked = [sample_prompt(rng, "train").prompt for _ in range(BATCH)]
        answers = _sample(model, chat, asked, seed=rng.getrandbits(31))
        said = [react(persona, text, rng) for text in _texts(chat, answers)]
        batch = examples(
            [_interaction(chat, i, *each) for i, each in enumerate(zip(asked, answers, said, strict=True))],
            chat,
            config=config,
            max_model_len=512,
            parent_version=0,
            refused=Counters.empty(),
        )
        optimizer.zero_grad()
        run_step(shard(batch, rank=0, num_workers=1, max_tokens=4096), policy, config)
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        teacher.follow()
        if update in EXAMINED:
            after = _texts(chat, _sample(model, chat, [question.prompt for question in held_out], seed=0))
            points.append(_examined(arm, learning_rate, seed, update * BATCH, held_out, before, after))
    return points


def _held_out() -> list[Any]:
    from sdpo_ray.simulate.world import sample_prompt

    rng = random.Random("estimators")
    return [sample_prompt(rng, "held_out") for _ in range(NUM_HELD_OUT)]


def _sample(model: Any, chat: Any, prompts: Sequence[str], *, seed: int) -> list[tuple[int, ...]]:
    """Response ids at temperature 1, the end token included where it was sampled."""
    import torch

    from sdpo_ray.distill.attention import PACKED
    from sdpo_ray.records import Message, Role

    contexts = [chat.prompt_ids([Message(role=Role.USER, content=prompt)]) for prompt in prompts]
    width = max(map(len, contexts))
    ids = torch.tensor([(chat.eos_id,) * (width - len(each)) + each for each in contexts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in contexts])
    model.set_attn_implementation("sdpa")
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=64, eos_token_id=chat.eos_id, pad_token_id=chat.eos_id,
        )  # fmt: skip
    model.set_attn_implementation(PACKED)
    answers = []
    for row in output[:, width:].tolist():
        end = row.index(chat.eos_id) + 1 if chat.eos_id in row else len(row)
        answers.append(tuple(row[:end]))
    return answers


def _texts(chat: Any, answers: Sequence[tuple[int, ...]]) -> list[str]:
    return [chat.text([token for token in answer if token != chat.eos_id]) for answer in answers]


def _interaction(chat: Any, index: int, prompt: str, answer: tuple[int, ...], said: str) -> Any:
    from sdpo_ray.records import (
        Consent,
        FinishReason,
        Interaction,
        Message,
        Role,
        Sampling,
        Turn,
        VersionSpan,
    )

    messages = (Message(role=Role.USER, content=prompt),)
    turn = Turn(
        turn_id=f"t{index}",
        tenant="",
        user="",
        conversation_id="",
        consent=Consent.TRAIN,
        messages=messages,
        response=chat.text([token for token in answer if token != chat.eos_id]),
        prompt_ids=chat.prompt_ids(messages),
        response_ids=answer,
        response_logprobs=(0.0,) * len(answer),
        version_spans=(VersionSpan(policy_version=0, start=0, end=len(answer)),),
        finish_reason=FinishReason.STOP if answer[-1] == chat.eos_id else FinishReason.LENGTH,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64, seed=None),
        started_at_s=0.0,
        finished_at_s=0.0,
    )
    return Interaction(
        interaction_id=turn.turn_id,
        turn=turn,
        follow_up=said,
        follow_up_turn_id="",
        follow_up_at_s=0.0,
        conversation=turn.turn_id,
    )


def _examined(
    arm: str, rate: float, seed: int, interactions: int, questions: Sequence[Any], before: list[str], after: list[str]
) -> Point:
    from sdpo_ray.simulate.users import PERSONAS, judge
    from sdpo_ray.simulate.world import is_right

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


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval."""
    half = T95[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return fmean(values), half


def main(
    seeds: Annotated[int, typer.Option(help="Seeds an arm.", min=2, max=10)] = 5,
    learning_rate: Annotated[list[float] | None, typer.Option(help="Learning rates; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time, one thread each.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every point to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw gained against kept to this PNG file.")] = None,
) -> None:
    """Compare what each token is moved by, on the laptop policy, over seeds."""
    rates = learning_rate or [2e-4, 4e-4]
    cells = [(arm, rate, seed) for rate in rates for seed in range(seeds) for arm in ARMS]
    points: list[Point] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(learn, *cell) for cell in cells]
        for future in track(running, description="arms x seeds"):
            points.extend(future.result())
    rows = [(rate, arm, *_row(points, rate, arm)) for rate in rates for arm in ARMS]
    heads = ("rate", "arm", *(f"win rate, {n * BATCH}" for n in EXAMINED), f"right, {UPDATES * BATCH}", "words")
    table = Table(*heads)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=150).print(table)
    if json_file is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        json_file.write_text(
            json.dumps({"commit": commit.stdout.strip(), "points": [asdict(point) for point in points]}, indent=1)
        )
    if markdown is not None:
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        markdown.write_text("\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n")
    if figure is not None:
        draw(points, rates, figure)


def draw(points: Sequence[Point], rates: Sequence[float], path: Path) -> None:
    """What each arm gained against what it kept, half-way: one panel a learning rate."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 4.6), layout="constrained")
    panels = canvas.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for index, arm in enumerate(ARMS):
            (win, win_half), (right, right_half) = (_final(points, rate, arm, name) for name in ("win_rate", "right"))
            marker = "os^Dv<>P"[index % 8]
            panel.errorbar(win, right, xerr=win_half, yerr=right_half, marker=marker, capsize=3, ls="none", label=arm)
        panel.set_title(f"learning rate {rate:g}, {EXAMINED[1] * BATCH} interactions")
        panel.set_xlabel("win rate against the base, ties dropped")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("right answers, held-out prompts")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    canvas.savefig(path, dpi=130)


def _final(points: Sequence[Point], rate: float, arm: str, name: str) -> tuple[float, float]:
    mine = [p for p in points if (p.arm, p.learning_rate, p.interactions) == (arm, rate, EXAMINED[1] * BATCH)]
    return interval([getattr(point, name) for point in mine])


def _row(points: Sequence[Point], rate: float, arm: str) -> list[str]:
    mine = [point for point in points if (point.arm, point.learning_rate) == (arm, rate)]

    def shown(name: str, interactions: int, digits: int = 3) -> str:
        mean, half = interval([getattr(point, name) for point in mine if point.interactions == interactions])
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    last = UPDATES * BATCH
    return [*(shown("win_rate", n * BATCH) for n in EXAMINED), shown("right", last), shown("tokens", last, 1)]


if __name__ == "__main__":
    typer.run(main)
