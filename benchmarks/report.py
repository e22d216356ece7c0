"""Results of the step benchmark, the description of the machine, and tables for the terminal and for docs/results."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from workload import Workload, batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures of one implementation; times are medians over its steps."""

    step_s: float
    response_tokens_per_s: float
    tokens_per_s: float
    """Tokens of x and y, without padding."""
    utilisation: float
    """Rate of useful flops over that of one large matrix product on this device, in this run."""
    extra_mib: float
    """Memory beyond what `process` defines as the base; the highest of all steps."""
    loss: float
    grad_cosine: float
    steps_s: list[float]


def speed_up(results: dict[str, Result], other: str) -> float:
    """Time of the other implementation over ours: the median over rounds."""
    return median(theirs / ours for ours, theirs in zip(results["ours"].steps_s, results[other].steps_s, strict=True))


def rows(results: dict[str, Result]) -> list[tuple[str, ...]]:
    """The table, its head first."""
    head = ("implementation", "step s", "response tok/s", "tok/s", "of matmul rate", "extra MiB", "loss", "cosine")
    return [
        head,
        *(
            (
                name,
                f"{each.step_s:.3g}",
                f"{each.response_tokens_per_s:.0f}",
                f"{each.tokens_per_s:.0f}",
                f"{each.utilisation:.1%}",
                f"{each.extra_mib:.0f}",
                f"{each.loss:.6f}",
                f"{each.grad_cosine:.8f}",
            )
            for name, each in results.items()
        ),
    ]


def described(work: Workload) -> dict[str, Any]:
    """The batch in numbers, with the padding that the other implementations compute and discard."""
    examples = batch(work)
    contexts = [len(each.prompt_ids) for each in examples]
    responses = [len(each.response_ids) for each in examples]
    return asdict(work) | {
        "prompt_tokens": sum(contexts),
        "response_tokens": sum(responses),
        "hindsight_tokens": sum(len(each.hindsight_ids) for each in examples) - sum(contexts),
        "padded_over_real_tokens": len(examples) * (max(contexts) + max(responses)) / sum(contexts + responses),
        "padded_over_real_responses": len(examples) * max(responses) / sum(responses),
    }


def machine(device: str) -> dict[str, Any]:
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": 1,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip()


def show(table: Sequence[tuple[str, ...]]) -> None:
    """Print the table."""
    drawn = Table(*table[0])
    for row in table[1:]:
        drawn.add_row(*row)
    Console(width=150).print(drawn)


def as_markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The table in Markdown, as in docs/results."""
    head, *rest = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join([head, "|" + "---|" * len(table[0]), *rest])
