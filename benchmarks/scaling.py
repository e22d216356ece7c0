"""Time of our step over the batch size, and its memory over the size of the vocabulary.

The models are small, so that 64k tokens and a vocabulary of 256k fit a laptop; each point has its own process.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from process import Implementation
from workload import Shape, Workload, batch

TOKENS = tuple(1024 * 2**n for n in range(7))
VOCABULARIES = tuple(1024 * 2**n for n in range(9))
_SHAPE = Shape(hidden=64, layers=2, intermediate=192, heads=4, key_heads=2, head_dim=16, vocabulary=2_048)
_WORK = Workload(
    shape=_SHAPE,
    batch_size=1,
    scale=0.1,
    spread=0.6,
    seed=0,
    device="cpu",
    lora_rank=0,
    max_tokens=4096,
    logits_mib=8,
    peer_micro_batch=8,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One size. `tokens` are those of x and y; `logits_mib` is the size of all logits of y in fp32 at once."""

    tokens: int
    scored: int
    vocabulary: int
    lora_rank: int
    seconds: float
    extra_mib: float
    logits_mib: float


def sizes() -> list[Workload]:
    """Cost over tokens with all parameters, then memory over vocabulary at 4k tokens, with all parameters and LoRA."""
    growing = [_of_tokens(_WORK, tokens) for tokens in TOKENS]
    widening = [
        _of_tokens(replace(_WORK, shape=replace(_SHAPE, vocabulary=vocabulary), lora_rank=rank), 4096)
        for rank in (0, 8)
        for vocabulary in VOCABULARIES
    ]
    return growing + widening


def measure(work: Workload) -> Point:
    """One size: the median of three steps, after one that is not counted."""
    examples = batch(work)
    scored = sum(len(each.response_ids) for each in examples)
    with Implementation("ours", work) as ours:
        ours.step()
        taken = [ours.step() for _ in range(3)]
    return Point(
        tokens=sum(len(each.prompt_ids) for each in examples) + scored,
        scored=scored,
        vocabulary=work.shape.vocabulary,
        lora_rank=work.lora_rank,
        seconds=median(each.seconds for each in taken),
        extra_mib=max(each.extra_mib for each in taken),
        logits_mib=scored * work.shape.vocabulary * 4 / 2**20,
    )


def slope(points: list[Point]) -> float:
    """Least-squares exponent of seconds over tokens; 1 is linear."""
    logs = [(math.log(point.tokens), math.log(point.seconds)) for point in points]
    x, y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return float(sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs))


def largest_budget(work: Workload, most: int) -> int:
    """Tokens of the largest micro-batch that fits, by doubling from 1024 up to `most`; 0 where none does."""
    fits, tokens = 0, 1024
    while tokens <= most:
        try:
            with Implementation("ours", replace(_of_tokens(work, tokens), max_tokens=2 * tokens)) as ours:
                ours.step()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            break
        fits, tokens = tokens, tokens * 2
    return fits


def draw(points: list[Point], file: Path) -> None:
    """Two panels: seconds over tokens, extra memory over vocabulary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    cost, full, lora = split(points)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.loglog([p.tokens for p in cost], [p.seconds for p in cost], "o-", color="#3b6fb6", label="measured")
    left.loglog(
        [p.tokens for p in cost],
        [cost[-1].seconds * p.tokens / cost[-1].tokens for p in cost],
        "--",
        color="#999999",
        label="proportional to tokens",
    )
    left.set(xlabel="tokens of x and y in the batch", ylabel="seconds a step", title=f"slope {slope(cost):.2f}")
    sizes = [p.vocabulary for p in full]
    right.loglog(sizes, [p.logits_mib for p in full], "--", color="#999999", label="all logits at once, once")
    right.loglog(sizes, [p.extra_mib for p in full], "o-", color="#c4574a", label="all parameters learn")
    right.loglog(sizes, [p.extra_mib for p in lora], "s-", color="#3b6fb6", label="LoRA")
    right.set(xlabel="vocabulary", ylabel="MiB beyond weights and gradients", title=f"{full[0].scored} scored tokens")
    thousands: Callable[[float, int], str] = lambda value, _: f"{value / 1024:.0f}k"  # noqa: E731
    for axes, ticks in ((left, [p.tokens for p in cost]), (right, sizes)):
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def tables(points: list[Point]) -> list[list[tuple[str, ...]]]:
    """Rows under a head: cost over tokens, memory over vocabulary."""
    cost, full, lora = split(points)
    return [
        [
            ("tokens of x and y", "step s", "tok/s", "extra MiB"),
            *((str(p.tokens), f"{p.seconds:.3g}", f"{p.tokens / p.seconds:.0f}", f"{p.extra_mib:.0f}") for p in cost),
            ("log-log slope", f"{slope(cost):.3f}", "", ""),
        ],
        [
            ("vocabulary", "all logits MiB", "extra MiB, all parameters", "extra MiB, LoRA"),
            *(
                (str(p.vocabulary), f"{p.logits_mib:.0f}", f"{p.extra_mib:.0f}", f"{q.extra_mib:.0f}")
                for p, q in zip(full, lora, strict=True)
            ),
        ],
    ]


def split(points: list[Point]) -> tuple[list[Point], list[Point], list[Point]]:
    """Of `sizes()`: those over tokens, those over vocabulary with all parameters, and with LoRA."""
    cost = points[: len(TOKENS)]
    rest = points[len(TOKENS) :]
    return cost, [p for p in rest if not p.lora_rank], [p for p in rest if p.lora_rank]


def _of_tokens(work: Workload, tokens: int) -> Workload:
    """`work` with the smallest batch of at least `tokens` tokens of x and y."""
    # A batch is the beginning of every larger one.
    size = 1
    while True:
        total = 0
        for index, each in enumerate(batch(replace(work, batch_size=size)), 1):
            total += len(each.prompt_ids) + len(each.response_ids)
            if total >= tokens:
                return replace(work, batch_size=index)
        size *= 2


def record(points: list[Point]) -> dict[str, object]:
    """The part of the JSON file about scaling."""
    return {"slope": slope(split(points)[0]), "points": [asdict(point) for point in points]}
