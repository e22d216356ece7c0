"""A finished cycle, as `promote.registry` records it."""

from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import (
    BASE_VERSION,
    Candidate,
    Decision,
    Fingerprint,
    RefusalCount,
    Relevance,
    Report,
    Score,
    Snapshot,
    StepMetrics,
    Verdict,
    version_of_cycle,
)


def entry(cycle: int, *, verdict: Verdict = Verdict.HOLD, root: Path = Path("/runs")) -> CycleRecord:
    """Cycle number `cycle`, whose parent is the candidate of the cycle before: two steps, two scores."""
    version = version_of_cycle(cycle)
    steps = tuple(
        StepMetrics(
            step=step,
            loss=1 / (step + 1),
            mean_advantage=0.125,
            abs_advantage=0.375,
            gradient_norm=2.0,
            num_sequences=16,
            num_tokens=300,
            sampler_gap=0.25,
        )
        for step in range(2)
    )
    return CycleRecord(
        cycle=cycle,
        seed=10 * cycle,
        commit="c0ffee",
        run=Run(),
        snapshot=Snapshot(
            snapshot_id=f"s{cycle}",
            table_version=7,
            seed=10 * cycle,
            rule="two of two",
            interaction_ids=("a", "b"),
            held_out_ids=(),
            path=str(root / "snapshots" / f"c{cycle:04d}"),
            digest="ab" * 32,
            last_interaction_at_s=5.0,
            last_batch=6,
            not_drawn=(RefusalCount(reason="stale", n=4),),
        ),
        candidate=Candidate(
            policy_version=version,
            parent_version=version - 1,
            path=str(root / "candidates" / f"v{version:04d}"),
            snapshot_id=f"s{cycle}",
            fingerprint=Fingerprint(token_ids=(1, 2), logprobs=(-0.5,)),
            steps=steps,
            refusals=(RefusalCount(reason="too_long", n=3),),
            alterations=(RefusalCount(reason="history_cut", n=2),),
        ),
        report=Report(
            policy_version=version,
            base_version=BASE_VERSION,
            champion_version=version - 1,
            confidence=0.95,
            scores=(
                Score(name="retention", n=192, value=0.95, low=0.9, high=0.97),
                Score(name="win_rate.vs_champion.ties_half", n=192, value=0.5, low=0.4, high=0.6),
            ),
        ),
        decision=Decision(policy_version=version, verdict=verdict, reasons=("no signal: 0.500 [0.400, 0.600]",)),
        relevance=(
            Relevance(interaction_id="a", signal=0.3, floor=0.1),
            Relevance(interaction_id="b", signal=0.1, floor=0.1),
        ),
    )
