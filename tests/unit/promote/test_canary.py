"""The decision on a canary by its outcomes, and the file that serving follows."""

import random
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.config import CanaryConfig
from sdpo_ray.errors import DataError
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.canary import CanaryArm, CanaryJudge, begin, current, end
from sdpo_ray.records import Canary, Candidate, Fingerprint, Release, Verdict

HOUR_S = 3600.0
STARTED_S = 1_000_000.0


def release(version: int) -> Release:
    fingerprint = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))
    return Release(policy_version=version, path=f"v{version}", previous_version=None, fingerprint=fingerprint)


def candidate(version: int) -> Candidate:
    return Candidate(
        policy_version=version,
        parent_version=0,
        path=f"v{version}",
        snapshot_id="s",
        fingerprint=release(version).fingerprint,
    )


def rules(**changes: Any) -> CanaryConfig:
    return CanaryConfig(**({"mode": "canary", "share": 0.5, "min_answers": 40, "max_hours": 2.0} | changes))


def judge(canary_rules: CanaryConfig) -> CanaryJudge:
    canary = Canary(
        candidate=release(7),
        champion_version=3,
        mode="shadow" if canary_rules.mode == "shadow" else "canary",
        share=canary_rules.share,
        started_at_s=STARTED_S,
    )
    return CanaryJudge(canary, canary_rules)


def hear(asked: CanaryJudge, rng: random.Random, n: int, *, champion: float, candidate: float) -> None:
    for _ in range(n):
        asked.reacted(rng.random() < champion, candidate=False)
        asked.reacted(rng.random() < candidate, candidate=True)


def time_answers(asked: CanaryJudge, rng: random.Random, n: int, *, times: float, tokens: int = 20) -> None:
    """Answers of 10 ms a token, give or take a fifth; the candidate's take so many times as long."""
    for _ in range(n):
        asked.answered(seconds=tokens * 0.01 * rng.uniform(0.8, 1.2), tokens=tokens, candidate=False)
        asked.answered(seconds=tokens * 0.01 * rng.uniform(0.8, 1.2) * times, tokens=tokens, candidate=True)


def test_a_candidate_like_the_champion_is_promoted_after_so_many_answers():
    asked, rng = judge(rules()), random.Random(1)
    hear(asked, rng, 39, champion=0.2, candidate=0.2)
    assert asked.ruling(STARTED_S + HOUR_S) is None
    hear(asked, rng, 1, champion=0.2, candidate=0.2)
    ruling = asked.ruling(STARTED_S + HOUR_S)
    assert ruling is not None
    assert ruling[0] is Verdict.PROMOTE
    assert "40 conversations" in ruling[1]


def test_a_candidate_that_users_complain_of_is_rejected_with_the_numbers():
    asked, rng = judge(rules(min_answers=1000)), random.Random(2)
    for _ in range(100):
        hear(asked, rng, 1, champion=0.1, candidate=0.9)
        if ruling := asked.ruling(STARTED_S):
            break
    assert ruling is not None
    assert ruling[0] is Verdict.REJECT
    found = asked.candidate
    assert found.reactions < 30
    assert f"{found.complaints} complaints in {found.reactions} conversations" in ruling[1]
    assert "users complain more of it" in ruling[1]
    assert f"of {2 / 0.05:g};" in ruling[1]


def test_a_breach_counts_though_there_were_answers_enough():
    asked, rng = judge(rules(min_answers=1)), random.Random(3)
    hear(asked, rng, 40, champion=0.0, candidate=1.0)
    ruling = asked.ruling(STARTED_S)
    assert ruling is not None
    assert ruling[0] is Verdict.REJECT


def test_a_slow_candidate_is_rejected_and_one_within_the_bound_is_not():
    slow, rng = judge(rules(max_slower=1.5)), random.Random(4)
    time_answers(slow, rng, 120, times=2.5)
    ruling = slow.ruling(STARTED_S)
    assert ruling is not None
    assert ruling[0] is Verdict.REJECT
    assert "more than 1.5 times as long a token" in ruling[1]
    within = judge(rules(max_slower=1.5))
    time_answers(within, rng, 1000, times=1.4)
    assert within.slowness_evidence < 1
    assert within.ruling(STARTED_S) is None


def test_shorter_answers_are_not_slower_ones():
    asked, rng = judge(rules(max_slower=1.5)), random.Random(5)
    # 50 ms to and fro and 10 ms a token: 2 tokens take 35 ms each, 40 tokens take 11 ms each.
    for _ in range(400):
        for is_candidate, short in ((False, 0.1), (True, 0.9)):
            tokens = 2 if rng.random() < short else 40
            seconds = (0.05 + 0.01 * tokens) * rng.uniform(0.9, 1.1)
            asked.answered(seconds=seconds, tokens=tokens, candidate=is_candidate)
    assert asked.slowness_evidence < 1


def test_a_load_that_slows_both_down_is_no_breach():
    asked, rng = judge(rules(max_slower=1.2)), random.Random(6)
    for times in (1.0, 3.0, 1.0, 5.0):
        for _ in range(100):
            for is_candidate in (False, True):
                seconds = 0.2 * times * rng.uniform(0.8, 1.2)
                asked.answered(seconds=seconds, tokens=20, candidate=is_candidate)
    assert asked.slowness_evidence < 40


def test_too_few_answers_in_time_hold_the_candidate():
    asked, rng = judge(rules()), random.Random(7)
    hear(asked, rng, 5, champion=0.0, candidate=0.0)
    assert asked.ruling(STARTED_S + 1.99 * HOUR_S) is None
    ruling = asked.ruling(STARTED_S + 2 * HOUR_S)
    assert ruling is not None
    assert ruling[0] is Verdict.HOLD
    assert "5 answers of 40 after 2.0 h" in ruling[1]


def test_answers_in_shadow_count_without_reactions():
    asked, rng = judge(rules(mode="shadow")), random.Random(8)
    time_answers(asked, rng, 40, times=1.0)
    ruling = asked.ruling(STARTED_S)
    assert ruling is not None
    assert ruling[0] is Verdict.PROMOTE
    assert asked.candidate == CanaryArm(answers=40, reactions=0, complaints=0)


def test_equal_candidates_are_rejected_no_more_often_than_promised():
    rejected = 0
    for seed in range(150):
        asked, rng = judge(rules(alpha=0.2, min_answers=1000)), random.Random(seed)
        for _ in range(60):
            hear(asked, rng, 1, champion=0.3, candidate=0.3)
            time_answers(asked, rng, 1, times=1.0)
            if asked.ruling(STARTED_S) is not None:
                rejected += 1
                break
    assert rejected <= 0.2 * 150


def test_the_pointer_is_written_once_found_again_and_taken_away(tmp_path: Path):
    layout = Layout(tmp_path)
    assert current(layout) is None
    assert not end(layout)
    canary = begin(layout, candidate(7), release(3), rules())
    assert (canary.candidate.policy_version, canary.champion_version, canary.mode, canary.share) == (
        7,
        3,
        "canary",
        0.5,
    )
    assert canary.candidate.previous_version == 3
    assert current(layout) == canary
    assert begin(layout, candidate(7), release(3), rules(share=0.1)) == canary
    assert begin(layout, candidate(8), release(3), rules()).candidate.policy_version == 8
    assert end(layout)
    assert current(layout) is None
    assert not end(layout)


def test_a_pointer_that_is_none_of_ours_is_refused(tmp_path: Path):
    layout = Layout(tmp_path)
    layout.canary_pointer.write_text("{}")
    with pytest.raises(DataError, match=r"canary\.json is not a Canary"):
        current(layout)
