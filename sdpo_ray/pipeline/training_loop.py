"""The training loop: curate, draw, distill, evaluate, decide, release; without end, or for a number of cycles."""

import itertools
import signal
from types import FrameType
from typing import TYPE_CHECKING

import typer

from sdpo_ray.config import Run
from sdpo_ray.io.files import read_json
from sdpo_ray.io.locks import data_lock, run_lock
from sdpo_ray.pipeline.background_ingest import ingest_in_background
from sdpo_ray.pipeline.cycle import is_started, next_cycle, run_cycle, start_cycle
from sdpo_ray.pipeline.periodic import run_periodically
from sdpo_ray.records import BASE_VERSION, CycleStart, Release, version_of_cycle
from sdpo_ray.records.run_events import CycleFinished
from sdpo_ray.telemetry import EventFile

if TYPE_CHECKING:
    from sdpo_ray.curate.pipeline import Curator
    from sdpo_ray.pipeline.stages import Pipeline


def run_training_loop(run: Run, cycles: int) -> None:
    """Run `cycles` cycles (0: until the process is stopped).

    Raises ConfigError if another training loop has the run, ReleaseError if nothing is served.
    """
    import ray

    from sdpo_ray.curate.pipeline import Curator
    from sdpo_ray.eventlog.factory import open_log
    from sdpo_ray.pipeline.stages import Pipeline
    from sdpo_ray.promote.registry import Registry

    layout = run.layout
    events = EventFile(layout.events)
    with run_lock(layout):
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False)
        # After ray.init: Ray installs a handler of its own, which ends the process with status 15.
        signal.signal(signal.SIGTERM, exit_on_sigterm)
        registry = Registry.of(run)
        log = open_log(layout, run.capture, name="continual")
        curator = Curator(layout, log, curate=run.curate, capture=run.capture)
        pipeline = Pipeline(run, curator, registry, events)
        served = pipeline.promotion.champion()
        pipeline.canary_runner.end_stale(version_of_cycle(next_cycle(layout.root / "cycles")))
        registry.register_base(read_json(layout.release(BASE_VERSION), Release), served=served)
        complaint = f"the registry does not answer; asking on every {run.promote.poll_s:g} s"
        # In a thread, so that an operator's rollback takes effect during a stage that takes hours.
        sync_alias = pipeline.promotion.sync_alias
        with run_periodically(sync_alias, name="alias", every_s=run.promote.poll_s, complaint=complaint):
            for _ in range(cycles) if cycles else itertools.count():
                run_next_cycle(run, pipeline, curator, events)


def run_next_cycle(run: Run, pipeline: "Pipeline", curator: "Curator", events: EventFile) -> None:
    """Curate and run the next cycle, or resume the one that was interrupted."""
    from sdpo_ray.pipeline.curation import curate_until_ready

    layout = run.layout
    cycle = next_cycle(layout.root / "cycles")
    directory = layout.cycle(cycle)
    if not is_started(directory):
        curate_until_ready(run, curator, pipeline.promotion.champion, events, cycle)

    def make() -> CycleStart:
        parent = pipeline.promotion.champion().policy_version
        return CycleStart(
            cycle=cycle,
            policy_version=version_of_cycle(cycle),
            parent_version=parent,
            seed=run.seed * 1_000_003 + cycle,
        )

    with ingest_in_background(run):
        start = start_cycle(directory, make)
        outcome = run_cycle(start, pipeline.stages, directory, events, data_lock=data_lock(layout))
    events.write(
        CycleFinished(
            cycle=cycle,
            policy_version=outcome.policy_version,
            verdict=outcome.verdict,
            reasons=outcome.reasons,
            champion_version=outcome.champion_version,
        )
    )
    typer.echo(f"cycle {cycle}: v{outcome.policy_version} {outcome.verdict}: {'; '.join(outcome.reasons)}")


def exit_on_sigterm(signum: int, frame: FrameType | None) -> None:
    """Exit with status 0 at once: the next start resumes in the stage that was interrupted."""
    typer.echo("stopped; the next start resumes in the same stage")
    raise SystemExit(0)
