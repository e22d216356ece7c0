"""One update on one worker: build examples, make one optimizer step per batch, checkpoint, export the candidate.

Every worker reads the whole snapshot and plans every whole batch, so that all make the same number of passes. Does not
use Ray.
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
from sdpo_ray.distill.data.example import HINDSIGHT, Example
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.distill.data.filters import Alteration
from sdpo_ray.distill.data.packing import batches
from sdpo_ray.distill.loss.drift import BaseScores, DriftStop, base_logprobs, load_base, probes, view_of
from sdpo_ray.distill.loss.kl_gain import gains
from sdpo_ray.distill.signals.registry import signal_of
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
    TokenAttribution,
)
from sdpo_ray.tables.snapshot_files import read_erased, read_interactions
from sdpo_ray.telemetry import Counters

_NON_FINITE = "non_finite_advantage"
"""Counted reason of sequences that the teacher's scores drop from a batch."""
_NUM_ATTRIBUTIONS = 4
"""Interactions whose per-token advantages are recorded."""


class TrainLoop:
    """An update in progress. Every worker makes the same calls."""

    def __init__(self, spec: UpdateSpec, *, rank: int, num_workers: int) -> None:
        """Load the parent and build the examples. Raises LearnerError where no interaction is trainable."""
        self._spec, self._rank, self._num_workers = spec, rank, num_workers
        self._refused = Counters.empty()
        parent = Path(spec.parent.path)
        self._chat = ChatFormat(parent)
        self._interactions = _interactions(spec.snapshot)
        self._examples = self._trainable()
        # SFT builds no (x, o), so neither attribution nor relevance can be computed.
        self._has_hindsight = HINDSIGHT in {context.name for context in signal_of(spec.config).contexts}
        self._learner = Learner(
            parent,
            spec.config,
            num_steps=num_steps(len(self._examples), spec.config),
            seed=spec.seed,
            rank=rank,
            num_workers=num_workers,
            new_adapter=spec.held_out is not None,
        )
        self._steps: list[StepMetrics] = []

    def run(self) -> None:
        """Train from the newest checkpoint, or the start, and seal the candidate. Raises LearnerError or DataError."""
        spec, learner = self._spec, self._learner
        checkpoints = spec.scratch / "checkpoints"
        base = self._base_scores()
        attributions, relevance = self._attributions(), self._relevance()
        resumed = checkpoint.load(checkpoints, learner, rank=self._rank, num_workers=self._num_workers)
        if resumed is not None:
            self._steps = resumed[0]
            self._refused = Counters(Counter({refusal.reason: refusal.n for refusal in resumed[1]}))
        self._report(self._steps, "wb")
        stop = DriftStop(spec.config)
        order = batches(self._examples, spec.config.batch_size, spec.config.epochs, spec.seed)
        for index, batch in enumerate(order):
            if index < learner.progress.step:
                continue
            metrics, sums = learner.step(batch, base)
            self._steps.append(metrics)
            self._report([metrics], "ab")
            if sums.num_dropped:
                self._refused.add(_NON_FINITE, sums.num_dropped)
            stop.check(metrics.step, sums)
            if metrics.step % spec.config.workers.checkpoint_every == 0:
                checkpoint.save(
                    checkpoints,
                    learner,
                    self._steps,
                    self._counts(),
                    rank=self._rank,
                    num_workers=self._num_workers,
                )
        self._export(attributions, relevance, self._gains())

    def _trainable(self) -> list[Example]:
        found = self._examples_of(self._interactions, self._refused)
        if not found:
            raise LearnerError(
                f"no interaction of {self._spec.snapshot.snapshot_id} is trainable: {dict(self._refused.values)}"
            )
        return found

    def _examples_of(self, interactions: Iterable[Interaction], refused: Counters) -> list[Example]:
        spec = self._spec
        return examples(
            interactions,
            self._chat,
            config=spec.config,
            max_model_len=spec.max_model_len,
            parent_version=spec.parent.policy_version,
            refused=refused,
        )

    def _base_scores(self) -> BaseScores:
        """The base's view of the watched responses, and each worker's share of its log-probs, gathered.

        The base is freed when this returns. Collective.
        """
        config, learner = self._spec.config, self._learner
        base = load_base(self._spec.base, config, learner.device)
        view = view_of(
            base,
            probes(self._examples, config),
            config,
            same_head=learner.has_adapter and learner.base == self._spec.base,
        )
        if not config.drift.kl_penalty:
            return BaseScores(view=view, logprobs={})
        own_share = base_logprobs(base, self._examples[self._rank :: self._num_workers], config)
        shares: list[Any] = [own_share]
        if self._num_workers > 1:
            shares = [None] * self._num_workers
            dist.all_gather_object(shares, own_share)
        return BaseScores(view=view, logprobs={name: logp for share in shares for name, logp in share.items()})

    def _attributions(self) -> tuple[TokenAttribution, ...]:
        """Per-token advantages of the first few interactions under the parent's weights, for the record.

        Empty for a personal policy, whose record must hold no user text.
        """
        if not self._has_hindsight or self._spec.held_out is not None:
            return ()
        shown = [replace(item, first_scored=0) for item in self._examples[:_NUM_ATTRIBUTIONS]]
        before, after = (self._learner.scores(shown, hindsight=hindsight) for hindsight in (False, True))
        by_id = {interaction.interaction_id: interaction for interaction in self._interactions}
        return tuple(
            assemble(by_id[item.interaction_id], self._chat, item, logprobs=plain, hindsight_logprobs=hindsight)
            for item, plain, hindsight in zip(shown, before, after, strict=True)
            if all(map(math.isfinite, [*plain, *hindsight]))
        )

    def _relevance(self) -> tuple[Relevance, ...]:
        """Effect of some interactions' own follow-ups and of unrelated ones, under the parent's weights."""
        config = self._spec.config
        if not self._has_hindsight:
            return ()
        probes = pick(
            self._interactions,
            self._examples,
            lambda interaction: next(iter(self._examples_of([interaction], Counters.empty())), None),
            num_probes=config.signal.relevance_probes,
            seed=self._spec.seed,
        )
        return measure(probes, self._learner.scores)

    def _gains(self) -> tuple[Gain, ...]:
        """Gains of a personal policy on its held-out interactions. Collective."""
        if self._spec.held_out is None:
            return ()
        interactions = read_interactions(self._spec.held_out)
        return gains(self._learner, interactions, self._examples_of(interactions, Counters.empty()), self._spec.config)

    def _export(
        self, attributions: tuple[TokenAttribution, ...], relevance: tuple[Relevance, ...], gained: tuple[Gain, ...]
    ) -> None:
        spec, learner = self._spec, self._learner
        trained = gather_parameters(learner.trained, keep=self._rank == 0)
        teacher = (
            gather_teacher(learner.teacher, learner.trained, keep=self._rank == 0)
            if spec.config.teacher.kind == "ema"
            else None
        )
        if self._rank == 0:
            candidate = Candidate(
                policy_version=spec.policy_version,
                parent_version=spec.parent.policy_version,
                path=str(spec.out),
                snapshot_id=spec.snapshot.snapshot_id,
                fingerprint=Fingerprint(token_ids=(), logprobs=()),
                steps=tuple(self._steps),
                refusals=tuple(each for each in self._counts() if each.reason not in set(Alteration)),
                alterations=tuple(each for each in self._counts() if each.reason in set(Alteration)),
                attributions=attributions,
            )
            export(
                candidate,
                trained,
                parent=Path(spec.parent.path),
                base=learner.base,
                lora=spec.config.lora,
                teacher=teacher,
                relevance=relevance,
                gains=gained,
            )

    def _counts(self) -> tuple[RefusalCount, ...]:
        return tuple(RefusalCount(reason=reason, n=n) for reason, n in sorted(self._refused.values.items()))

    def _report(self, steps: list[StepMetrics], mode: str) -> None:
        if self._rank == 0:
            with (self._spec.scratch / "progress.jsonl").open(mode) as file:
                file.writelines(msgspec.json.encode(metrics) + b"\n" for metrics in steps)


def _interactions(snapshot: Snapshot) -> list[Interaction]:
    """The snapshot's interactions that were not erased since, in training order. Raises NotReady or DataError."""
    directory = require_ready(Path(snapshot.path))
    erased = {row.interaction_id for row in read_erased(directory)}
    interactions = read_interactions(directory)
    drawn = [interaction_id for interaction_id in snapshot.interaction_ids if interaction_id not in erased]
    if [interaction.interaction_id for interaction in interactions] != drawn:
        raise DataError(f"{snapshot.path} does not hold the interactions of {snapshot.snapshot_id}")
    return interactions
