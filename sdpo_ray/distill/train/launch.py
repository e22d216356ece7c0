"""One update as a Ray Train run: start the workers, show progress, read the candidate."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.train.update_spec import CANDIDATE_FILE, UpdateSpec, num_steps
from sdpo_ray.distill.train.worker import train
from sdpo_ray.errors import LearnerError
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.records import Candidate, Release, Snapshot
from sdpo_ray.upstream.ray import TRAIN_POLLING

_POLL_S = 0.1


def distill(
    *,
    snapshot: Snapshot,
    parent: Release,
    policy_version: int,
    out: Path,
    config: DistillConfig,
    max_model_len: int,
    seed: int,
    base: Path,
    apart: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Candidate:
    """Train `parent` on `snapshot` and seal the candidate at `out`; needs a Ray cluster that is connected to.

    Safe to repeat: a candidate already sealed at `out` is returned as it is, and an update that was broken off goes on
    from its last checkpoint, as does a lost worker group, `workers.max_failures` times. `on_step(step, num_steps)` is
    called in this thread while the workers run; `num_steps` counts refused interactions too. `base` is the policy from
    which drift is measured; `apart` is as on `Job`. Raises LearnerError when there is no candidate to be had, or when
    `out` holds another update's.
    """
    out = out.absolute()
    if is_ready(out):
        return _sealed(out, snapshot, parent)
    scratch = out.with_name(f".{out.name}.train")
    job = UpdateSpec(
        snapshot=snapshot,
        parent=parent,
        policy_version=policy_version,
        out=out,
        config=config,
        max_model_len=max_model_len,
        seed=seed,
        base=base.absolute(),
        scratch=scratch,
        apart=apart.absolute() if apart is not None else None,
    )
    _prepare(job)
    try:
        refusal = _run(job, on_step)
    except LearnerError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    if refusal is not None:
        raise LearnerError(refusal)
    return _sealed(out, snapshot, parent)


def _prepare(job: UpdateSpec) -> None:
    """An empty scratch directory, or the one an earlier attempt at this very update left."""
    same = job.scratch / "job.sha256"
    digest = hashlib.sha256(repr(job).encode()).hexdigest()
    if same.exists() and same.read_text() == digest:
        return
    shutil.rmtree(job.scratch, ignore_errors=True)
    job.scratch.mkdir(parents=True)
    same.write_text(digest)


def _run(job: UpdateSpec, on_step: Callable[[int, int], None] | None) -> str | None:
    """Why there is no candidate, or None."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # How often Ray Train looks whether its workers are done: with its 2 s a run ends 4 s later.
    for name, value in TRAIN_POLLING.items():
        os.environ.setdefault(name, value)
    workers = job.config.workers
    trainer = TorchTrainer(
        partial(train, job),
        scaling_config=ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers) if workers.min_workers else workers.num_workers,
            use_gpu=workers.use_gpu,
        ),
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"ray-{uuid4().hex[:8]}",
            storage_path=str(job.scratch),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    outcome: list[str | None] = []
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit().return_value)
        except Exception as error:
            failure.append(error)

    # In a thread of its own, Ray Train leaves the process's signal handlers alone.
    thread = threading.Thread(target=fit, name="distill", daemon=True)
    thread.start()
    seen = 0
    total = num_steps(len(job.snapshot.interaction_ids), job.config)
    while thread.is_alive():
        thread.join(_POLL_S)
        done = _count_lines(job.scratch / "progress.jsonl")
        if on_step is not None and done != seen:
            on_step(done, total)
        seen = done
    if failure:
        raise LearnerError(f"the training run failed: {failure[0]}") from failure[0]
    return outcome[0]


def _sealed(out: Path, snapshot: Snapshot, parent: Release) -> Candidate:
    candidate = read_json(out / CANDIDATE_FILE, Candidate)
    if (candidate.snapshot_id, candidate.parent_version) != (snapshot.snapshot_id, parent.policy_version):
        raise LearnerError(
            f"{out} already holds an update of version {candidate.parent_version} by {candidate.snapshot_id}, "
            f"not of version {parent.policy_version} by {snapshot.snapshot_id}"
        )
    return candidate


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
