"""What each of this project's replacements inside vLLM's engine is worth: on and off, in turns, in one process.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/engine_options.py --json engine_options.json

One engine core and vLLM's output processor run in this process, with the messages between them encoded and decoded as
between two. Every request wants the log-probs that recording needs. A burst runs all its requests to their end with one
setting; rounds go through the settings in turns, and each is compared with vLLM's own in the same round, so ratios
repeat to about 1 % where the machine's own speed does not. `engine` is CPU time of a step in the engine's process,
`server` CPU time of a token in the server's; the HTTP request around it costs another 3 to 5 ms.

    norms     RMS norms by vLLM's CPU kernels     (serve/upstream/vllm/cpu_norms.py; CPU only)
    sampler   no ranks, log-probs sent as bytes   (serve/upstream/vllm/sampler.py)
    lists     log-probs as floats, not as text    (serve/upstream/vllm/logprobs.py)

With 64 requests the tiny policy's figures are those of the host around a fast model, as on a GPU.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import as_markdown, commit, machine, show
from servers import RECIPE, TINY, make_policy

from sdpo_ray.config import load_run
from serve.ray_options import CPU_ENV, ENGINE_ENV

SAY_EVERY_S = 15
BASELINE = "vLLM's own"
HEAD = ("case", "setting", "engine", "to vLLM's own", "server", "to vLLM's own")


@dataclass(frozen=True, slots=True)
class Setting:
    """Which replacements are on."""

    norms: bool = False
    sampler: bool = False
    lists: bool = False
    logprobs: bool = True


SETTINGS = {
    BASELINE: Setting(),
    "norms": Setting(norms=True),
    "sampler": Setting(sampler=True),
    "lists": Setting(lists=True),
    "all": Setting(norms=True, sampler=True, lists=True),
    "no log-probs": Setting(logprobs=False),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One engine and what it is given."""

    model: str
    requests: int
    """At once."""
    tokens: int
    """Of each response; the more, the longer a burst."""
    share: float
    """Of all the time."""

    def __str__(self) -> str:
        return f"{self.model}, {self.requests} at once"


CASES = (Case("tiny", 8, 32, 0.15), Case("tiny", 64, 32, 0.3), Case("50m", 8, 12, 0.55))


@dataclass(frozen=True, slots=True)
class Burst:
    """CPU seconds of one burst."""

    engine_s: float
    """Scheduling, the model, sampling and encoding; of a decoding step."""
    server_s: float
    """Decoding, detokenizing and collecting; of a token."""


class Engine:
    """vLLM's engine core and output processor in this process, with the replacements switched by hand."""

    def __init__(self, model: Path, case: Case) -> None:
        from vllm.v1.engine import EngineCoreOutputs
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        from serve.engine.vllm_args import engine_arguments
        from serve.upstream.vllm import logprobs
        from serve.upstream.vllm.cpu_norms import KernelRMSNorm
        from serve.upstream.vllm.sampler import LeanSampler

        limits = [f"serve.max_num_seqs={case.requests}", "serve.max_queued=1000", "serve.kv_cache_mib=256"]
        run = load_run(RECIPE, limits)
        self._engine = LLMEngine.from_engine_args(engine_arguments(run, str(model)), enable_multiprocessing=False)
        self._core: Any = self._engine.engine_core
        (self._runner,) = self._engine.collective_rpc(lambda worker: worker.model_runner)
        own = self._runner.sampler
        self._samplers = {False: own, True: LeanSampler(own.logprobs_mode, own.use_fp64_gumbel)}
        self._norms = [each for each in self._runner.get_model().modules() if isinstance(each, KernelRMSNorm)]
        self._recorded_alone = logprobs.RECORDED_ALONE
        logprobs.install()
        self._encoder, self._decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
        self._case, self._number = case, 0

    def burst(self, setting: Setting) -> Burst:
        """Run a burst of requests to their end."""
        self._runner.sampler = self._samplers[setting.sampler]
        for norm in self._norms:
            norm._forward_method = norm.forward_cpu if setting.norms else norm.forward_native
        self._add(setting)
        steps, engine_s, server_s, first_done = 0, 0.0, 0.0, False
        while self._engine.has_unfinished_requests():
            began = time.process_time()
            outputs = self._core.get_output()
            message = [bytes(part) for part in self._encoder.encode(outputs)]
            encoded = time.process_time()
            received = self._decoder.decode(message)
            self._engine.output_processor.process_outputs(received.outputs, received.timestamp)
            ended = time.process_time()
            if first_done and len(received.outputs) == self._case.requests:
                steps, engine_s, server_s = steps + 1, engine_s + encoded - began, server_s + ended - encoded
            # Steps until every request has a token also read prompts.
            first_done = first_done or len(received.outputs) == self._case.requests
        return Burst(engine_s / steps, server_s / (steps * self._case.requests))

    def _add(self, setting: Setting) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        token = self._recorded_alone.set(setting.lists and setting.logprobs)
        for _ in range(self._case.requests):
            self._number += 1
            params = SamplingParams(max_tokens=self._case.tokens, ignore_eos=True, seed=self._number)
            params.logprobs = 0 if setting.logprobs else None
            prompt = TokensPrompt(prompt_token_ids=[5 + self._number % 50] * 24)
            self._engine.add_request(str(self._number), prompt, params)
        self._recorded_alone.reset(token)


def measure(model: Path, case: Case, seconds: float, send: Any) -> None:
    """Send each round's bursts by setting, as a dict, through a pipe; the first round warms up and is not sent."""
    engine, names, number = Engine(model, case), list(SETTINGS), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        first = number % len(names)
        bursts = {name: engine.burst(SETTINGS[name]) for name in names[first:] + names[:first]}
        if number:
            send.send(bursts)
        number += 1
    send.close()


def rounds_of(model: Path, case: Case, seconds: float) -> Iterator[dict[str, Burst]]:
    """The rounds of one engine in a fresh process, as they end."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(model, case, seconds, send))
    process.start()
    send.close()
    with contextlib.suppress(EOFError):
        while True:
            yield receive.recv()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the engine's process ended with {process.exitcode}")


def rows(case: Case, found: list[dict[str, Burst]]) -> list[tuple[str, ...]]:
    """One row a setting: medians, and the median ratio to vLLM's own of the same round with its quartiles."""
    of: dict[str, Callable[[Burst], float]] = {
        "engine": lambda burst: burst.engine_s,
        "server": lambda burst: burst.server_s,
    }
    made = []
    for name in SETTINGS:
        row = [str(case), name]
        for part, value in of.items():
            ratios = sorted(value(each[name]) / value(each[BASELINE]) for each in found)
            middle = statistics.median(value(each[name]) for each in found)
            unit = f"{1e3 * middle:.3f} ms a step" if part == "engine" else f"{1e6 * middle:.1f} us a token"
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            row += [unit, f"{statistics.median(ratios):.3f} ({low:.3f}-{high:.3f})"]
        made.append(tuple(row))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=330, help="of measuring, over all cases")
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    os.environ.update(ENGINE_ENV | CPU_ENV)
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    table: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {"tiny": TINY, "50m": make_policy(Path(folder) / "50m")}
        for case in CASES:
            seconds = case.share * arguments.seconds
            print(f"{case}: starting an engine", flush=True)
            found: list[dict[str, Burst]] = []
            said_s = time.monotonic()
            for each in rounds_of(models[case.model], case, seconds):
                found.append(each)
                if time.monotonic() - said_s > SAY_EVERY_S:
                    said_s = time.monotonic()
                    print(f"{case}: {len(found)} rounds, of {seconds:.0f} s in all", flush=True)
            table += rows(case, found)
            show([HEAD, *rows(case, found)])
    if arguments.json:
        print(as_markdown([HEAD, *table]))
        figures = {"machine": machine("cpu"), "commit": commit(), "rows": [HEAD, *table]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
