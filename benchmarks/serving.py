"""Bare `vllm serve` against ours with durable capture: same model, limits and clients, measured in turns in one run.

    PYTHONPATH=. python benchmarks/serving.py --json serving.json

A separate process sends requests for answers of exactly 32 tokens, plain and streamed, 1, 8 and 32 at once. Each round
measures all servers under all loads, in the opposite order of the round before. The other servers are stopped (SIGSTOP)
meanwhile, so that only our own figures pay for what Ray does while it is idle. Throughputs and times to the first token
are compared within a round, and the median of the ratios is reported; a p99 is over the answers of all rounds.

Bare vLLM is measured twice. `vllm serve` has its own defaults. `tuned` has the executor and the settings of our engine,
which are faster on a CPU: the difference to it is what our layers cost.

Layers are removed one at a time: `direct` sends to the replica instead of HAProxy, `unrecorded` sends without consent
to record, and `tuned + Ray` is bare vLLM while our idle cluster keeps running: what Ray's own processes take of a small
machine. The CPU time of each process for a request shows what a layer uses.

The default takes about eight minutes on two quiet cores; `--long` takes about 35.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import BARE, OURS, TOKENS, TUNED, Comparison, Target
from report import as_markdown, commit, machine, show
from servers import TINY, bare, make_policy, ours

CLIENTS = (1, 8, 32)
NO_CONSENT = {"x-sdpo-consent": "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    models: tuple[str, ...]
    rounds: int
    seconds: float
    """Length of one measurement, about."""


DEFAULT = Size(models=("tiny",), rounds=3, seconds=2)
LONG = Size(models=("tiny", "50m"), rounds=5, seconds=4)


def compare(name: str, model: Path, arguments: argparse.Namespace, log: Path) -> Comparison:
    """Start the servers with this model, and measure them."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.disk)))
        print(f"{name}: starting vllm serve", flush=True)
        theirs = stack.enter_context(bare(model, log, tuned=False))
        print(f"{name}: starting vllm serve, tuned", flush=True)
        tuned = stack.enter_context(bare(model, log, tuned=True))
        print(f"{name}: starting ours", flush=True)
        mine = stack.enter_context(ours(model, log, root))
        targets = {
            BARE: Target(theirs, theirs.url, {}),
            TUNED: Target(tuned, tuned.url, {}),
            OURS: Target(mine, mine.url, {}),
        }
        if not arguments.quick:
            targets["direct"] = Target(mine, mine.replica_url(), {})
            targets["unrecorded"] = Target(mine, mine.url, NO_CONSENT)
            targets["tuned + Ray"] = Target(tuned, tuned.url, {}, beside=mine)
        comparison = Comparison(name, targets, clients=(8,) if arguments.quick else CLIENTS)
        comparison.run(rounds=arguments.rounds, seconds=arguments.seconds)
        return comparison


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="both models, five rounds of four-second measurements")
    parser.add_argument("--models", nargs="+", choices=("tiny", "50m"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one measurement, about")
    parser.add_argument("--quick", action="store_true", help="8 clients only, without the comparison of layers")
    parser.add_argument("--disk", type=Path, help="directory for the journal; default: that of temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    size = LONG if arguments.long else DEFAULT
    arguments.models = arguments.models or size.models
    arguments.rounds = arguments.rounds or size.rounds
    arguments.seconds = arguments.seconds or size.seconds
    return arguments


def main() -> None:
    arguments = parse()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    print(f"the servers log to {log}", flush=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.models:
            model = TINY if name == "tiny" else make_policy(Path(directory) / name)
            comparison = compare(name, model, arguments, log)
            figures[name] = comparison.figures()
            if arguments.json:
                print(as_markdown(comparison.rows()), flush=True)
            show(comparison.rows())
    if arguments.json:
        figures |= {"machine": machine("cpu"), "commit": commit(), "rounds": arguments.rounds, "tokens": TOKENS}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
