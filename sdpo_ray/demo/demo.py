"""The demonstration: cluster, serving, simulated users and training loop on this machine.

It runs from a checkout and from an installed wheel: commands are started as modules, and Ray's workers import the same
installation, so that the job needs no working directory.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console

from sdpo_ray.cli.run_files import INSTALLED
from sdpo_ray.cluster.local_cluster import LocalCluster, free_port, stop_tree
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import Run, load_run
from sdpo_ray.demo.display import Display, display_on
from sdpo_ray.errors import SdpoError
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.records import Verdict
from sdpo_ray.records.run_events import CycleFinished
from sdpo_ray.simulate.http_clients import TrafficStats
from sdpo_ray.telemetry import EventReader

RECKLESS = ["distill.learning_rate=0.02", "distill.drift.max_kl_to_base=none"]
"""Fifty times the recipe's learning rate without the learner's drift stop: an update that the gate must refuse."""
PROMOTIONS = 3
MAX_CYCLES = 9
NUM_CPUS = 4
"""Ray's logical CPUs: two engines, the learner and curation share two cores."""
MIN_FREE_BYTES = 2 << 30
_POLL_S = 0.25
_Result = TypeVar("_Result")


class Demo:
    """One demonstration of a run file on this machine."""

    def __init__(self, run_file: Path, overrides: list[str], console: Console | None = None) -> None:
        self._run_file = run_file
        self._overrides = overrides
        self._console = console or Console()
        self.run: Run = load_run(run_file, overrides)
        self.layout = self.run.layout
        self.log = self.layout.root / "demo.log"
        self.stats = self.layout.root / "traffic.json"
        self.seconds: dict[str, float] = {}
        self.outcomes: list[CycleFinished] = []
        self._events = EventReader(self.layout.events)

    def go(self, *, keep: bool) -> list[str]:
        """Run it all. Returns the claims of the demo that do not hold. `keep` leaves everything up until Ctrl-C."""
        from sdpo_ray.demo.run_plot import draw
        from sdpo_ray.demo.run_summary import failures, summarize

        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            with display_on(self._console, self.run) as display:
                cluster = self._timed(
                    display, "ray", lambda: stack.enter_context(LocalCluster(num_cpus=NUM_CPUS, log=self.log))
                )
                self._timed(
                    display, "serve", lambda: deploy(cluster.dashboard, self.run, self._run_file, self._overrides)
                )
                with self._simulated_users(cluster, display):
                    self._run_training_loop(cluster, display)
                    self._wait_for_champion_response(display)
                display.show_step("curating the last turns")
                self.follow(self._command("curate"), cluster, display)
                self.seconds["total"] = time.monotonic() - began
                summary = summarize(self.run, read_json(self.stats, TrafficStats), self.seconds)
                write_json(self.layout.root / "summary.json", summary)
                draw(summary, self.layout.root / "figure.png")
                display.show_step("done")
            if keep:
                self._stay(cluster)
        return failures(summary)

    def _timed(self, display: Display, name: str, work: Callable[[], _Result]) -> _Result:
        display.show_step(f"starting {name}")
        began = time.monotonic()
        result = work()
        self.seconds[f"start_{name}"] = time.monotonic() - began
        return result

    @contextlib.contextmanager
    def _simulated_users(self, cluster: LocalCluster, display: Display) -> Iterator[None]:
        argv = [*self._command("simulate"), "--stats", str(self.stats)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(argv, env=cluster.environment, cwd=INSTALLED, stdout=log, stderr=log)
        try:
            yield
            display.show_step("stopping the simulated users")
            process.terminate()
            process.wait(timeout=90)
        finally:
            stop_tree(process.pid)

    def _run_training_loop(self, cluster: LocalCluster, display: Display) -> None:
        self._submit(cluster, display, cycles=2)
        self._submit(cluster, display, cycles=1, overrides=RECKLESS)
        while (promoted := self._num_promoted()) < PROMOTIONS and len(self.outcomes) < MAX_CYCLES:
            self._submit(cluster, display, cycles=PROMOTIONS - promoted)

    def _submit(
        self, cluster: LocalCluster, display: Display, *, cycles: int, overrides: list[str] | None = None
    ) -> None:
        """`ray job submit`, as a user would; returns when the job has ended."""
        submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard, "--"]
        submit += [*self._command("continual", overrides), "--cycles", str(cycles)]
        self.follow(submit, cluster, display)

    def follow(self, argv: list[str], cluster: LocalCluster, display: Display) -> None:
        """Run a process, and show the run's events until it ends. Raises SdpoError with the end of its log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(argv, env=cluster.environment, cwd=INSTALLED, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                self._refresh(display)
                time.sleep(_POLL_S)
        finally:
            stop_tree(process.pid)
        self._refresh(display)
        if process.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise SdpoError(f"{' '.join(argv[-8:])} ended with {process.returncode}:\n{tail}")

    def _wait_for_champion_response(self, display: Display) -> None:
        """Wait, 30 s at most, until a simulated user has had a response of the last release."""
        served = str(self.outcomes[-1].champion_version)
        deadline = time.monotonic() + 30
        while served not in self._traffic().first_seen_s and time.monotonic() < deadline:
            self._refresh(display)
            time.sleep(_POLL_S)

    def _refresh(self, display: Display) -> None:
        new_events = self._events.read_new()
        self.outcomes += [event for event in new_events if isinstance(event, CycleFinished)]
        display.update(new_events, self._traffic())

    def _traffic(self) -> TrafficStats:
        return read_json(self.stats, TrafficStats) if self.stats.exists() else TrafficStats()

    def _num_promoted(self) -> int:
        return sum(outcome.verdict is Verdict.PROMOTE for outcome in self.outcomes)

    def _command(self, name: str, overrides: list[str] | None = None) -> list[str]:
        """The command `jobs.<name>` on this run, with more overrides."""
        set_ = (part for override in [*self._overrides, *(overrides or [])] for part in ("--set", override))
        return [sys.executable, "-m", f"jobs.{name}", "--run", str(self._run_file), *set_]

    def _stay(self, cluster: LocalCluster) -> None:
        """Serve MLflow's page, print the addresses, and wait for Ctrl-C."""
        port = free_port()
        store = f"sqlite:///{self.layout.root}/mlflow.db"
        mlflow = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
        api = f"{self.run.serve.url}/v1"
        with self.log.open("ab") as log:
            process = subprocess.Popen([*mlflow, "--workers", "1"], stdout=log, stderr=log, env=cluster.environment)
        message = {
            "model": self.run.serve.served_name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
        typer.echo(
            f"\nAPI            {api}\nMLflow         http://127.0.0.1:{port}\nRay dashboard  {cluster.dashboard}"
        )
        typer.echo(
            f"\nChat:  curl {api}/chat/completions -H 'content-type: application/json' -d '{json.dumps(message)}'"
        )
        typer.echo("\nCtrl-C stops everything.")
        try:
            process.wait()
        except KeyboardInterrupt:
            typer.echo("stopping")
        finally:
            stop_tree(process.pid)
