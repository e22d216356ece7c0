"""One update on one worker: examples, one optimizer step a batch, checkpoints, the candidate.

Every worker reads the whole snapshot and plans the whole batch, so no worker waits for a pass that another does not
make. Knows nothing of Ray.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist

from sdpo_ray.chat import ChatFormat
from sdpo_ray.distill.attribution.relevance import measure, pick
from sdpo_ray.distill.attribution.token_attribution import assemble
from sdpo_ray.distill.data.examples import Example, examples
from sdpo_ray.distill.data.filters import Alteration
from sdpo_ray.distill.data.packing import batches
from sdpo_ray.distill.loss.drift import BaseScores, DriftStop, base_logprobs, load_base, probes, view_of
from sdpo_ray.distill.loss.kl_gain import gains
from sdpo_ray.distill.train import checkpoint
from sdpo_ray.distill.train.export import export
from sdpo_ray.distill.train.learner import Learner
from sdpo_ray.distill.train.update_spec import UpdateSpec, num_steps
from sdpo_ray.distill.train.zero_gather import gather_parameters, gather_teacher
from sdpo_ray.errors import DataError, LearnerError
from sdpo_ray.io.files import require_ready
from sdpo_ray.records import (
    Candidate,
    Fingerprint,
    Gain,
    Interaction,
    RefusalCount,
    Relevance,
    Snapshot,
    StepMetrics,
    TokenSignal,
)
from sdpo_ray.tables.arrow_schemas import read_erased, read_interactions
from sdpo_ray.telemetry import Counters

_NON_FINITE = "non_finite_advantage"
_NUM_SIGNALS = 4


class TrainLoop:
    """Every worker makes the same calls."""

    def __init__(self, job: UpdateSpec, *, rank: int, num_workers: int) -> None:
        self._job, self._rank, self._num_workers = job, rank, num_workers
        self._refused = Counters.empty()
        parent = Path(job.parent.path)
        self._chat = ChatFormat(parent)
        self._interactions = _interactions(job.snapshot)
        self._examples = self._usable()
        self._learner = Learner(
            parent,
            job.config,
            num_steps=num_steps(len(self._examples), job.config),
            seed=job.seed,
            rank=rank,
            num_workers=num_workers,
            apart=job.apart is not None,
        )
        self._steps: list[StepMetrics] = []

    def go(self) -> None:
        """From the newest checkpoint, or the beginning, to the sealed candidate. Raises LearnerError or DataError."""
        job, learner = self._job, self._learner
        checkpoints = job.scratch / "checkpoints"
        base = self._ask_base()
        signals, relevance = self._signals(), self._relevance()
        kept = checkpoint.load(checkpoints, learner, rank=self._rank, num_workers=self._num_workers)
        if kept is not None:
            self._steps = kept[0]
            self._refused = Counters(Counter({refusal.reason: refusal.n for refusal in kept[1]}))
        self._report(self._steps, "wb")
        stop = DriftStop(job.config)
        order = batches(self._examples, job.config.batch_size, job.config.epochs, job.seed)
        for index, batch in enumerate(order):
            if index < learner.progress.step:
                continue
            metrics, sums = learner.step(batch, base)
            self._steps.append(metrics)
            self._report([metrics], "ab")
            if sums.num_dropped:
                self._refused.add(_NON_FINITE, sums.num_dropped)
            stop.check(metrics.step, sums)
            if metrics.step % job.config.workers.checkpoint_every == 0:
                checkpoint.save(
                    checkpoints,
                    learner,
                    self._steps,
                    self._counts(),
                    rank=self._rank,
                    num_workers=self._num_workers,
                )
        self._export(signals, relevance, self._gains())

    def _usable(self) -> list[Example]:
        usable = self._examples_of(self._interactions, self._refused)
        if not usable:
            raise LearnerError(
                f"no interaction of {self._job.snapshot.snapshot_id} can be learned from: {dict(self._refused.values)}"
            )
        return usable

    def _examples_of(self, interactions: Iterable[Interaction], refused: Counters) -> list[Example]:
        job = self._job
        return examples(
            interactions,
            self._chat,
            config=job.config,
            max_model_len=job.max_model_len,
            parent_version=job.parent.policy_version,
            refused=refused,
        )

    def _ask_base(self) -> BaseScores:
        """What the base says; it is gone again afterwards. Every worker watches alike, and scores its share."""
        config, learner = self._job.config, self._learner
        base = load_base(self._job.base, config, learner.device)
        view = view_of(
            base,
            probes(self._examples, config),
            config,
            same_head=learner.has_adapter and learner.base == self._job.base,
        )
        if not config.drift.kl_penalty:
            return BaseScores(view=view, logprobs={})
        mine = base_logprobs(base, self._examples[self._rank :: self._num_workers], config)
        shares: list[Any] = [mine]
        if self._num_workers > 1:
            shares = [None] * self._num_workers
            dist.all_gather_object(shares, mine)
        return BaseScores(view=view, logprobs={name: logp for share in shares for name, logp in share.items()})

    def _signals(self) -> tuple[TokenSignal, ...]:
        """What the parent's weights make of the first few interactions, for people to look at."""
        if self._job.config.objective != "sdpo" or self._job.apart is not None:
            return ()
        shown = [replace(item, first_scored=0) for item in self._examples[:_NUM_SIGNALS]]
        served, hindsight = (self._learner.scores(shown, hindsight=told) for told in (False, True))
        by_id = {interaction.interaction_id: interaction for interaction in self._interactions}
        return tuple(
            assemble(by_id[item.interaction_id], self._chat, item, logprobs=before, hindsight_logprobs=after)
            for item, before, after in zip(shown, served, hindsight, strict=True)
            if all(map(math.isfinite, [*before, *after]))
        )

    def _relevance(self) -> tuple[Relevance, ...]:
        """What the parent's weights make of some follow-ups, and of strangers' in their place."""
        config = self._job.config
        if config.objective != "sdpo":
            return ()
        probes = pick(
            self._interactions,
            self._examples,
            lambda interaction: next(iter(self._examples_of([interaction], Counters.empty())), None),
            num_probes=config.signal.relevance_probes,
            seed=self._job.seed,
        )
        return measure(probes, self._learner.scores)

    def _gains(self) -> tuple[Gain, ...]:
        """What was gained on interactions that were kept apart. Collective."""
        if self._job.apart is None:
            return ()
        interactions = read_interactions(self._job.apart)
        return gains(self._learner, interactions, self._examples_of(interactions, Counters.empty()), self._job.config)

    def _export(
        self, signals: tuple[TokenSignal, ...], relevance: tuple[Relevance, ...], gained: tuple[Gain, ...]
    ) -> None:
        job, learner = self._job, self._learner
        trained = gather_parameters(learner.trained, keep=self._rank == 0)
        teacher = (
            gather_teacher(learner.teacher, learner.trained, keep=self._rank == 0)
            if job.config.teacher.kind == "ema"
            else None
        )
        if self._rank == 0:
            candidate = Candidate(
                policy_version=job.policy_version,
                parent_version=job.parent.policy_version,
                path=str(job.out),
                snapshot_id=job.snapshot.snapshot_id,
                fingerprint=Fingerprint(token_ids=(), logprobs=()),
                steps=tuple(self._steps),
                refusals=tuple(each for each in self._counts() if each.reason not in set(Alteration)),
                alterations=tuple(each for each in self._counts() if each.reason in set(Alteration)),
                signals=signals,
            )
            export(
                candidate,
                trained,
                parent=Path(job.parent.path),
                base=learner.base,
                lora=job.config.lora,
                teacher=teacher,
                relevance=relevance,
                gains=gained,
            )

    def _counts(self) -> tuple[RefusalCount, ...]:
        return tuple(RefusalCount(reason=reason, n=n) for reason, n in sorted(self._refused.values.items()))

    def _report(self, steps: list[StepMetrics], mode: str) -> None:
        if self._rank == 0:
            with (self._job.scratch / "progress.jsonl").open(mode) as file:
                file.writelines(msgspec.json.encode(metrics) + b"\n" for metrics in steps)


def _interactions(snapshot: Snapshot) -> list[Interaction]:
    """What was drawn and not erased since, in the order of training. Raises NotReady or DataError."""
    directory = require_ready(Path(snapshot.path))
    erased = {row.interaction_id for row in read_erased(directory)}
    interactions = read_interactions(directory)
    drawn = [interaction_id for interaction_id in snapshot.interaction_ids if interaction_id not in erased]
    if [interaction.interaction_id for interaction in interactions] != drawn:
        raise DataError(f"{snapshot.path} does not hold the interactions of {snapshot.snapshot_id}")
    return interactions
