"""One step of the learner against the authors' style and TRL's: python benchmarks/sdpo_step.py --json step.json

All use the same random weights and token ids; a step is both passes and the backward over one batch, without the
optimizer. Each implementation has its own process of one thread; their steps alternate, so that other load on the
machine affects all of them, and ratios are medians over rounds. Gradients are compared to a reference of higher
precision. The default takes about two minutes on a CPU; `--linear` adds about five.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import scaling
import typer
from process import Implementation, StepCost
from progress import Steps
from report import Result, as_markdown, commit, described, machine, rows, show, speed_up
from workload import ENVIRONMENT, SHAPES, Workload, batch, useful_flops

NAMES = ("ours", "trl", "authors")
WARM_UPS = 2
PLOT = Path(__file__).parents[1] / "docs" / "results" / "sdpo_step_scaling.png"


def compare(work: Workload, names: Sequence[str], repeats: int) -> tuple[dict[str, Result], float]:
    """The result of every implementation, and the loss of the reference."""
    examples = batch(work)
    scored = sum(len(each.response_ids) for each in examples)
    tokens = scored + sum(len(each.prompt_ids) for each in examples)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as open_ones:
        gradient = Path(directory) / "gradient.pt"
        with Implementation("reference", work) as exact:
            reference_loss = exact.step().loss
            exact.save(gradient)
        running = {name: open_ones.enter_context(Implementation(name, work)) for name in names}
        taken: dict[str, list[StepCost]] = {name: [] for name in names}
        with Steps("step", (WARM_UPS + repeats) * len(names)) as progress:
            for number in range(WARM_UPS + repeats):
                for name, each in running.items():
                    step = each.step()
                    progress.done(f"{name}: {step.seconds:.2f} s{', warm-up' if number < WARM_UPS else ''}")
                    if number >= WARM_UPS:
                        taken[name].append(step)
        peak_flops = running["ours"].matmul_tflops() * 1e12
        cosines = {name: each.cosine(gradient) for name, each in running.items()}
    flops = useful_flops(work, examples)
    results = {}
    for name, steps in taken.items():
        seconds = median(step.seconds for step in steps)
        results[name] = Result(
            step_s=seconds,
            response_tokens_per_s=scored / seconds,
            tokens_per_s=tokens / seconds,
            utilisation=flops / seconds / peak_flops,
            extra_mib=max(step.extra_mib for step in steps),
            loss=steps[-1].loss,
            grad_cosine=cosines[name],
            steps_s=[round(step.seconds, 4) for step in steps],
        )
    return results, reference_loss


def main(
    shape: Annotated[
        Literal["smoke", "tiny", "qwen3-4b", "qwen3-8b"], typer.Option(help="Shape of the model.")
    ] = "tiny",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="fp32 on a CPU, bf16 on a GPU.")] = "cpu",
    lora: Annotated[int, typer.Option(help="Rank of the adapter; 0 trains all parameters.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences a step; 0 takes 8 on a CPU and 32 on a GPU.")] = 0,
    scale: Annotated[float, typer.Option(help="Factor of all lengths; 0 takes 0.12 on a CPU and 1 on a GPU.")] = 0.0,
    spread: Annotated[float, typer.Option(help="Sigma of the log-normal lengths; 0 leaves nothing to pad.")] = 0.6,
    repeats: Annotated[int, typer.Option(help="Steps of each after two warm-ups.", min=1)] = 5,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one micro-batch of ours.")] = 4096,
    logits_mib: Annotated[int, typer.Option(help="Size of the logits of ours at a time.")] = 128,
    peer_micro_batch: Annotated[
        int, typer.Option(help="Sequences of one micro-batch of the others; 0 takes 8 on a CPU and 2 on a GPU.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, token ids and lengths.")] = 0,
    online: Annotated[
        bool, typer.Option(help="Also measure the authors' online trainer, with its third pass.")
    ] = False,
    linear: Annotated[
        bool, typer.Option(help=f"Also measure cost over tokens and memory over vocabulary, drawn to {PLOT.name}.")
    ] = False,
    budget_up_to: Annotated[
        int, typer.Option(help="Also find the largest micro-batch that fits, up to so many tokens.")
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
) -> None:
    """Time, memory and gradient of one step: ours, TRL's and the authors' way."""
    os.environ.update(ENVIRONMENT)
    cuda = device == "cuda"
    work = Workload(
        shape=SHAPES[shape],
        batch_size=batch_size or (32 if cuda else 8),
        scale=scale or (1.0 if cuda else 0.12),
        spread=spread,
        seed=seed,
        device=device,
        lora_rank=lora,
        max_tokens=max_tokens,
        logits_mib=logits_mib,
        peer_micro_batch=peer_micro_batch or (2 if cuda else 8),
    )
    results, reference_loss = compare(work, (*NAMES, "authors, online") if online else NAMES, repeats)
    ratios = {
        "speed_vs_authors": speed_up(results, "authors"),
        "speed_vs_trl": speed_up(results, "trl"),
        "extra_memory_vs_trl": results["ours"].extra_mib / results["trl"].extra_mib,
        "grad_cosine": results["ours"].grad_cosine,
    }
    record: dict[str, Any] = ratios | {
        "machine": machine(device),
        "commit": commit(),
        "shape": shape,
        "workload": described(work),
        "reference_loss": reference_loss,
        "implementations": {name: asdict(each) for name, each in results.items()},
    }
    tables: list[list[tuple[str, ...]]] = [
        rows(results),
        [("ours over theirs", "median"), *((name, f"{value:.6g}") for name, value in ratios.items())],
    ]
    if budget_up_to:
        record["largest_token_budget"] = scaling.largest_budget(work, budget_up_to)
        tables[1].append(("largest_token_budget", str(record["largest_token_budget"])))
    if linear:
        points, sizes = [], scaling.sizes()
        with Steps("sizes", len(sizes)) as progress:
            for size in sizes:
                points.append(scaling.measure(size))
                progress.done(f"{points[-1].tokens} tokens, {points[-1].seconds:.2f} s")
        scaling.draw(points, PLOT)
        record["scaling"] = scaling.record(points)
        tables += scaling.tables(points)
    for table in tables:
        show(table)
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=1))
    if markdown is not None:
        markdown.write_text("\n\n".join(map(as_markdown, tables)) + "\n")


if __name__ == "__main__":
    typer.run(main)
