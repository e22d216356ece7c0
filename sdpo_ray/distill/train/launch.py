"""One update as a Ray Train run: start the workers, report progress, return the candidate."""

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
    held_out: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Candidate:
    """Train `parent` on `snapshot` and return the candidate sealed at `out`. Ray must be initialised.

    Safe to repeat: a candidate already sealed at `out` is returned as it is, and an interrupted update resumes from its
    last checkpoint, as does a lost worker group, `workers.max_failures` times. `on_step(step, num_steps)` is called in
    this thread while the workers run; `num_steps` assumes that every interaction is trainable. `base` is the policy
    from which drift is measured; `held_out` is as on `UpdateSpec`. Raises LearnerError where the update has no
    candidate, or `out` holds that of another update.
    """
    out = out.absolute()
    if is_ready(out):
        return _sealed(out, snapshot, parent)
    scratch = out.with_name(f".{out.name}.train")
    spec = UpdateSpec(
        snapshot=snapshot,
        parent=parent,
        policy_version=policy_version,
        out=out,
        config=config,
        max_model_len=max_model_len,
        seed=seed,
        base=base.absolute(),
        scratch=scratch,
        held_out=held_out.absolute() if held_out is not None else None,
    )
    _prepare(spec)
    try:
        refusal = _run(spec, on_step)
    except LearnerError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    if refusal is not None:
        raise LearnerError(refusal)
    return _sealed(out, snapshot, parent)


def _prepare(spec: UpdateSpec) -> None:
    """Make an empty scratch directory, or keep the one that an earlier attempt at the same update left."""
    digest_file = spec.scratch / "job.sha256"
    digest = hashlib.sha256(repr(spec).encode()).hexdigest()
    if digest_file.exists() and digest_file.read_text() == digest:
        return
    shutil.rmtree(spec.scratch, ignore_errors=True)
    spec.scratch.mkdir(parents=True)
    digest_file.write_text(digest)


def _run(spec: UpdateSpec, on_step: Callable[[int, int], None] | None) -> str | None:
    """Run the workers. Returns the reason why there is no candidate, or None."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # How often Ray Train polls its workers: with its default of 2 s a run ends 4 s later.
    for name, value in TRAIN_POLLING.items():
        os.environ.setdefault(name, value)
    workers = spec.config.workers
    trainer = TorchTrainer(
        partial(train, spec),
        scaling_config=ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers) if workers.min_workers else workers.num_workers,
            use_gpu=workers.use_gpu,
        ),
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"ray-{uuid4().hex[:8]}",
            storage_path=str(spec.scratch),
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

    # In a thread of its own, because Ray Train replaces the signal handlers of a main thread.
    thread = threading.Thread(target=fit, name="distill", daemon=True)
    thread.start()
    reported = 0
    total = num_steps(len(spec.snapshot.interaction_ids), spec.config)
    while thread.is_alive():
        thread.join(_POLL_S)
        done = _count_lines(spec.scratch / "progress.jsonl")
        if on_step is not None and done != reported:
            on_step(done, total)
        reported = done
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
