"""The dry run of an update: parameters, steps, tokens and memory, without Ray, without weights and without a GPU."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from sdpo_ray.config import Run
from sdpo_ray.distill.model.model_spec import read_model_spec
from sdpo_ray.distill.train.memory import MemoryEstimate, estimate
from sdpo_ray.distill.train.update_spec import num_steps
from sdpo_ray.records import Snapshot
from sdpo_ray.tables.snapshot_files import read_interactions

_GIB = 2**30
_SPARE = 0.1
"""Share of a GPU's memory that is left for its context and the allocator's fragmentation."""
_PARTS = (
    ("weights", "weights"),
    ("adapter", "adapter"),
    ("masters", "fp32 masters"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer state"),
    ("teacher", "teacher"),
    ("base_head", "the base's output layer"),
    ("buffers", "DeepSpeed's buffers"),
)


def show(run: Run, snapshot: Snapshot | None, gpu_gib: float | None) -> None:
    """Print parameters, tokens, steps and memory, and whether a worker fits into `gpu_gib`, or into the visible GPU.

    A group that may shrink is judged by its fewest workers. Raises ConfigError where there is no `config.json`.
    """
    shape = read_model_spec(_shape(run))
    memory = estimate(shape, run.distill, run.policy.max_model_len)
    console = Console()
    console.print(_facts(run, snapshot, memory))
    console.print(_memory(run, memory))
    fewest = run.distill.workers.min_workers or run.distill.workers.num_workers
    if fewest < run.distill.workers.num_workers:
        workers = run.distill.workers.model_copy(update={"num_workers": fewest})
        memory = estimate(shape, run.distill.model_copy(update={"workers": workers}), run.policy.max_model_len)
        console.print(f"with the {fewest} workers of min_workers, {memory.peak / _GIB:,.2f} GiB at the peak")
    room = gpu_gib if gpu_gib is not None else _visible_gib()
    if room is not None:
        console.print(verdict(memory, room))


def verdict(memory: MemoryEstimate, gpu_gib: float) -> str:
    """Whether a worker fits into a GPU's memory, and what to change where it does not."""
    need, usable = memory.peak / _GIB, gpu_gib * (1 - _SPARE)
    figures = f"{need:.1f} GiB of {gpu_gib:g} GiB, {_SPARE:.0%} kept free"
    if need <= usable:
        return f"[green]fits:[/] {figures}"
    peak_is_backward = memory.peak - memory.held == memory.activations + memory.head
    if peak_is_backward and memory.held / _GIB < usable:
        remedy = "set activation_checkpointing under [distill.workers], or lower max_tokens_per_micro_batch there"
    else:
        remedy = "share it out (num_workers, zero_stage), set offload, optimizer = 'adamw_8bit', or lora.rank"
    return f"[red]does not fit:[/] {figures}; {remedy}"


def _facts(run: Run, snapshot: Snapshot | None, memory: MemoryEstimate) -> Table:
    config, workers = run.distill, run.distill.workers
    table = Table(show_header=False, box=None)
    trained = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "all of them"
    table.add_row("parameters", f"{memory.num_parameters:,}")
    table.add_row("trained", f"{memory.num_trained:,}, {trained}")
    table.add_row("update", f"preset {config.preset}, {config.objective}, {config.teacher.kind} teacher")
    table.add_row(
        "workers", f"{workers.num_workers}, ZeRO-{workers.zero_stage}, {workers.precision}, {config.optimizer}"
    )
    per_step = config.batch_size * run.policy.max_model_len
    table.add_row(
        "tokens an optimizer step", f"at most {per_step:,} in either context, of {config.batch_size} interactions"
    )
    if snapshot is not None:
        drawn = len(snapshot.interaction_ids)
        steps = num_steps(drawn, config)
        table.add_row(
            "optimizer steps", f"{steps:,}: {drawn:,} interactions, epochs: {config.epochs}, if none is refused"
        )
        lengths = [
            len(each.turn.prompt_ids) + len(each.turn.response_ids) for each in read_interactions(Path(snapshot.path))
        ]
        if known := [length for length in lengths if length]:
            mean = sum(known) / len(known)
            table.add_row("tokens an interaction", f"{mean:,.0f} on average without hindsight, at most {max(known):,}")
    return table


def _memory(run: Run, memory: MemoryEstimate) -> Table:
    """Bytes of one worker by part, and the phases in which there is more."""
    unit, name = (_GIB, "GiB") if memory.peak > _GIB else (2**20, "MiB")

    def amount(size: int) -> str:
        return f"{size / unit:,.2f}"

    table = Table("memory of a worker", name, box=None)
    table.columns[1].justify = "right"
    for part, words in _PARTS:
        if size := getattr(memory, part):
            table.add_row(f"  {words}", amount(size))
    table.add_row("held from first to last step", amount(memory.held), style="bold")
    tokens = max(run.distill.workers.max_tokens_per_micro_batch, run.policy.max_model_len)
    for words, size in (
        (f"  and in the backward pass: activations of {tokens:,} tokens", memory.activations),
        ("                            output layer", memory.head),
        ("  or while the teacher scores", memory.teaching),
        ("  or while the optimizer steps", memory.stepping),
        ("  or while the base scores", memory.base),
    ):
        table.add_row(words, amount(size))
    table.add_row("at its peak", amount(memory.peak), style="bold")
    table.add_row("host memory of a worker", amount(memory.host))
    return table


def _shape(run: Run) -> Path:
    """The base's own config.json, else the file that `policy.shape` names."""
    if (run.base / "config.json").exists() or not run.policy.shape:
        return run.base / "config.json"
    here = Path(run.policy.shape).expanduser()
    return here if here.exists() else Path(__file__).parents[3] / here


def _visible_gib() -> float | None:
    """Memory of this machine's first GPU in GiB; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / _GIB
