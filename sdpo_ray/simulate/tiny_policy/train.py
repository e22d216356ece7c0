"""Pre-trains the laptop policy: python -m sdpo_ray.simulate.tiny_policy.train --out DIR --seed 0."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from sdpo_ray.simulate.tiny_policy.corpus import sample_conversation
from sdpo_ray.simulate.tiny_policy.curve import draw_curve
from sdpo_ray.simulate.tiny_policy.measure import Measurement, measure
from sdpo_ray.simulate.tiny_policy.model import answer_loss, build_model
from sdpo_ray.simulate.tiny_policy.recipe import Recipe
from sdpo_ray.simulate.tiny_policy.tokenizer import EncodedExample, encode, train_tokenizer

_POOL = 8
"""Batches drawn at a time and sorted by length together, so that a batch has little padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Result of a recipe. Made by `train`; read by `save`."""

    recipe: Recipe
    model: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    measurements: tuple[Measurement, ...]


def train(
    recipe: Recipe,
    *,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_measurement: Callable[[Measurement], None] = lambda measurement: None,
) -> Trained:
    """Train a tokenizer and a policy from random weights; the callbacks receive each loss and each measurement."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    texts = (t for _ in range(recipe.num_tokenizer_conversations) for t in sample_conversation(rng).turns)
    tokenizer = train_tokenizer(texts, vocab_size=recipe.vocab_size)
    model = build_model(recipe, tokenizer)
    measurements: list[Measurement] = []
    losses: list[float] = []
    for step, loss in enumerate(_losses(recipe, model, tokenizer, rng), start=1):
        losses.append(loss)
        on_step(step, loss)
        last = step == recipe.num_steps
        if last or step % recipe.measure_every_steps == 0:
            num_prompts = recipe.num_final_prompts if last else recipe.num_measured_prompts
            mean_loss = sum(losses) / len(losses)
            measurements.append(
                measure(model, tokenizer, step=step, loss=mean_loss, num_prompts=num_prompts, seed=recipe.seed)
            )
            losses.clear()
            on_measurement(measurements[-1])
    return Trained(recipe=recipe, model=model, tokenizer=tokenizer, measurements=tuple(measurements))


def save(trained: Trained, out: Path) -> None:
    """Write a checkpoint that transformers and vLLM load, with `training.json` and `training_curve.png` beside it."""
    out.mkdir(parents=True, exist_ok=True)
    trained.model.save_pretrained(out)
    trained.tokenizer.save_pretrained(out)
    draw_curve(trained.measurements, out / "training_curve.png")
    record = {
        "recipe": asdict(trained.recipe),
        "num_parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "torch": torch.__version__,
        "measurements": [asdict(measurement) for measurement in trained.measurements],
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def _losses(
    recipe: Recipe, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[float]:
    """Loss of each optimizer step; a step is taken when its loss is requested."""
    batches = _batches(rng, tokenizer, recipe.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.num_steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(recipe.num_steps):
        loss = answer_loss(model, next(batches), int(tokenizer.pad_token_id))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        yield loss.item()


def _batches(rng: random.Random, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Iterator[list[EncodedExample]]:
    """Endless batches, each of examples of similar length."""
    while True:
        pool = [encode(tokenizer, sample_conversation(rng)) for _ in range(_POOL * batch_size)]
        pool.sort(key=lambda example: len(example.ids))
        batches = [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
        rng.shuffle(batches)
        yield from batches


def main(
    out: Annotated[Path, typer.Option(help="Directory to write the checkpoint to.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same checkpoint on the same machine.")] = 0,
    steps: Annotated[int, typer.Option(min=20, help="Optimizer steps; fewer than these miss the floors.")] = 4_000,
) -> None:
    """Train the tiny policy from random weights on one thread, measure it on held-out phrasings and save it."""
    torch.set_num_threads(1)
    started_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)
        trained = train(
            Recipe(seed=seed, num_steps=steps),
            on_step=lambda step, loss: progress.update(task, completed=step, description=f"loss {loss:.3f}"),
            on_measurement=lambda measurement: progress.console.print(_line(measurement)),
        )
    save(trained, out)
    typer.echo(f"{out}: written after {time.monotonic() - started_s:.0f} s")


def _line(m: Measurement) -> str:
    return (
        f"step {m.step}: loss {m.loss:.3f}, {m.right:.1%} right, violations {m.base_violations:.2f} alone and "
        f"{m.oracle_violations:.2f} with the whole taste in hindsight"
    )


if __name__ == "__main__":
    typer.run(main)
