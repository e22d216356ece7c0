"""The demonstration: cluster, serving, simulated users and training loop on this machine, shown on one screen."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.live import Live

from sdpo_ray.cluster.local_cluster import LocalCluster, free_port, stop_tree
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import Run, load_run
from sdpo_ray.demo.dashboard import Dashboard
from sdpo_ray.errors import SdpoError
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.simulate.http_clients import TrafficStats
from sdpo_ray.telemetry import read_events

REPOSITORY = Path(__file__).parents[2]
RECKLESS = ["distill.learning_rate=0.02", "distill.drift.max_kl_to_base=none"]
"""Fifty times the recipe's rate, and the learner's own stop switched off: the update that the gate has to refuse."""
PROMOTIONS = 3
MAX_CYCLES = 9
NUM_CPUS = 4
"""Ray's logical CPUs: two engines, the learner and the stage take turns on two cores."""
MIN_FREE_BYTES = 2 << 30


class Demo:
    """One demonstration: what runs, and what it shows."""

    def __init__(self, run_file: Path, overrides: list[str]) -> None:
        self._run_file = run_file
        self._overrides = overrides
        self.run: Run = load_run(run_file, overrides)
        self.layout = self.run.layout
        self.log = self.layout.root / "demo.log"
        self.screen = Dashboard(self.run)
        self.stats = self.layout.root / "traffic.json"
        self.seconds: dict[str, float] = {}

    def go(self, *, keep: bool) -> list[str]:
        """Run it all. Returns what does not hold, in words; nothing when all does."""
        from sdpo_ray.demo.run_plot import draw
        from sdpo_ray.demo.run_summary import failures, summarize

        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            live = stack.enter_context(Live(self.screen, refresh_per_second=4, transient=False))
            run_file, overrides = self._run_file, self._overrides
            cluster = self._timed("ray", lambda: stack.enter_context(LocalCluster(num_cpus=NUM_CPUS, log=self.log)))
            self._timed("serve", lambda: deploy(cluster.dashboard, self.run, run_file, overrides))
            with self._users(cluster):
                self._turn_the_training_loop(cluster)
                self._see_the_champion()
            self._run_job(cluster, ["jobs/curate.py", *self._arguments()])
            self.seconds["total"] = time.monotonic() - began
            summary = summarize(self.run, read_json(self.stats, TrafficStats), self.seconds)
            write_json(self.layout.root / "summary.json", summary)
            draw(summary, self.layout.root / "figure.png")
            self.screen.say("done")
            live.refresh()
            live.stop()
            if keep:
                self._stay(cluster)
        return failures(summary)

    def _timed(self, name: str, work: Any) -> Any:
        self.screen.say(f"starting {name}")
        began = time.monotonic()
        result = work()
        self.seconds[f"start_{name}"] = time.monotonic() - began
        return result

    @contextlib.contextmanager
    def _users(self, cluster: LocalCluster) -> Iterator[None]:
        arguments = ["jobs/simulate.py", *self._arguments(), "--stats", str(self.stats)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=cluster.environment, cwd=REPOSITORY, stdout=log, stderr=log
            )
        try:
            yield
            self.screen.say("the users say goodbye")
            process.terminate()
            process.wait(timeout=90)
        finally:
            stop_tree(process.pid)

    def _turn_the_training_loop(self, cluster: LocalCluster) -> None:
        self._submit(cluster, turns=2)
        self._submit(cluster, turns=1, overrides=RECKLESS)
        while self._count("PROMOTE") < PROMOTIONS and len(self._outcomes()) < MAX_CYCLES:
            self._submit(cluster, turns=max(1, PROMOTIONS - self._count("PROMOTE")))

    def _submit(self, cluster: LocalCluster, *, turns: int, overrides: list[str] | None = None) -> None:
        """`ray job submit`, as a user would, followed on the screen until the job ends."""
        arguments = ["jobs/continual.py", *self._arguments(overrides), "--turns", str(turns)]
        commit = json.dumps({"env_vars": {"SDPO_COMMIT": code_commit()}})
        submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard]
        submit += ["--working-dir", str(REPOSITORY), "--runtime-env-json", commit, "--", sys.executable, *arguments]
        self._follow(submit, cluster)

    def _run_job(self, cluster: LocalCluster, arguments: list[str]) -> None:
        self._follow([sys.executable, *arguments], cluster)

    def _follow(self, argv: list[str], cluster: LocalCluster) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(argv, env=cluster.environment, cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                self._show()
                time.sleep(0.25)
        finally:
            stop_tree(process.pid)
        self._show()
        if process.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise SdpoError(f"{' '.join(argv[-8:])} ended with {process.returncode}:\n{tail}")

    def _see_the_champion(self) -> None:
        """Let the users meet the last release before they leave."""
        served = self.screen.served
        deadline = time.monotonic() + 30
        while str(served) not in read_json(self.stats, TrafficStats).first_seen_s and time.monotonic() < deadline:
            self._show()
            time.sleep(0.25)

    def _show(self) -> None:
        traffic = read_json(self.stats, TrafficStats) if self.stats.exists() else TrafficStats()
        self.screen.update(read_events(self.layout.events), traffic)

    def _outcomes(self) -> list[Any]:
        return [event for event in read_events(self.layout.events) if event.name == "outcome"]

    def _count(self, verdict: str) -> int:
        return sum(event.facts["verdict"] == verdict for event in self._outcomes())

    def _arguments(self, more: list[str] | None = None) -> list[str]:
        overrides = [*self._overrides, *(more or [])]
        return ["--run", str(self._run_file), *(part for override in overrides for part in ("--set", override))]

    def _stay(self, cluster: LocalCluster) -> None:
        """Leave everything up until Ctrl-C, with MLflow's page beside it."""
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
