"""The gate between an update and the users: report and rules in, verdict out; no I/O.

    a score is missing or impossible                        REJECT
    a score is beyond its bound, or the champion is better  REJECT, with every such score in the reasons
    the champion is beaten                                  PROMOTE
    otherwise                                               HOLD: no signal

For a personal policy the user's gain takes the place of the win rate against the champion. The probes declare their
scores as `ScoreSpec`: which are required, and their bounds. Fails closed. Reasons carry the numbers that decided.
"""

import math
from collections.abc import Iterator, Sequence

from sdpo_ray.config import PersonalConfig, PromoteConfig
from sdpo_ray.records import Decision, Report, Score, ScoreSpec, Verdict

WIN_RATE = "win_rate.vs_champion.ties_half"
"""Score by which a shared policy is promoted. Win rates that drop ties may have n = 0: if every pair ties there is
nothing to estimate. The gate accepts this and relies on `ties_half`."""
GAIN = "gain"
"""Score by which a personal policy is promoted."""
MIN_CONVERSATIONS = 5
"""Held-out conversations of one user below which a gain is not decided on."""


def decide(report: Report, rules: PromoteConfig, specs: Sequence[ScoreSpec]) -> Decision:
    """Decision on a candidate, by its report and the scores that the probes declare."""
    verdict, reasons = _judge(report, rules, specs)
    return Decision(policy_version=report.policy_version, verdict=verdict, reasons=reasons)


def decide_personal(
    report: Report, rules: PromoteConfig, personal: PersonalConfig, specs: Sequence[ScoreSpec]
) -> Decision:
    """Decision on a personal policy: whether its user gained, and no score is beyond its bound."""
    verdict, reasons = _judge_personal(report, rules, personal, specs)
    return Decision(policy_version=report.policy_version, verdict=verdict, reasons=reasons)


def _judge(report: Report, rules: PromoteConfig, specs: Sequence[ScoreSpec]) -> tuple[Verdict, tuple[str, ...]]:
    if unusable := tuple(_unusable(report, specs, WIN_RATE)):
        return Verdict.REJECT, unusable
    harms = list(_beyond_bounds(report, rules, specs))
    win_rate = _score(report, WIN_RATE)
    if win_rate.high < 0.5:
        harms.append(f"{_text(win_rate)}: it loses to the champion")
    if harms:
        return Verdict.REJECT, tuple(harms)
    against = f"{_text(win_rate)} against v{report.champion_version}"
    if win_rate.low > rules.min_win_rate:
        return Verdict.PROMOTE, (f"{against} is above {rules.min_win_rate:.3f}",)
    return Verdict.HOLD, (f"no signal: {against} is not above {rules.min_win_rate:.3f} with its low end",)


def _judge_personal(
    report: Report, rules: PromoteConfig, personal: PersonalConfig, specs: Sequence[ScoreSpec]
) -> tuple[Verdict, tuple[str, ...]]:
    if unusable := tuple(_unusable(report, specs, GAIN)):
        return Verdict.REJECT, unusable
    harms = list(_beyond_bounds(report, rules, specs))
    gain = _score(report, GAIN)
    if gain.high < 0:
        harms.append(f"{_nats(gain)}: it goes against what its user asked for")
    if harms:
        return Verdict.REJECT, tuple(harms)
    if gain.n < MIN_CONVERSATIONS:
        return Verdict.HOLD, (f"no signal: {gain.n} conversations were held out, {MIN_CONVERSATIONS} are needed",)
    if gain.low > personal.min_gain:
        return Verdict.PROMOTE, (f"{_nats(gain)} is above {personal.min_gain:g}",)
    return Verdict.HOLD, (f"no signal: {_nats(gain)} is not above {personal.min_gain:g} with its low end",)


def _unusable(report: Report, specs: Sequence[ScoreSpec], deciding: str) -> Iterator[str]:
    """Reasons why the gate cannot read the report; `deciding` is required whether a probe declares it or not."""
    declared = [*specs, *([] if any(spec.name == deciding for spec in specs) else [ScoreSpec(name=deciding)])]
    for spec in declared:
        score = report.score(spec.name)
        if score is None:
            if spec.required or spec.name == deciding:
                yield f"{spec.name} is missing"
        elif not all(math.isfinite(number) for number in (score.value, score.low, score.high)):
            yield f"{_text(score)} is not a number"
        elif not score.low <= score.value <= score.high:
            yield f"{_text(score)} lies outside its own interval"
        elif score.n < 1 and not spec.may_be_empty:
            yield f"{spec.name} rests on no answer"


def _beyond_bounds(report: Report, rules: PromoteConfig, specs: Sequence[ScoreSpec]) -> Iterator[str]:
    for spec in specs:
        score = report.score(spec.name)
        if score is None or spec.direction is None:
            continue
        bound = _bound(spec, rules)
        if spec.direction == "min" and score.value < bound:
            yield f"{_text(score)} is under {bound:.3f}"
        if spec.direction == "max" and score.value > bound:
            yield f"{_text(score)} is over {bound:.3f}"


def _bound(spec: ScoreSpec, rules: PromoteConfig) -> float:
    if spec.name in rules.bounds:
        return rules.bounds[spec.name]
    return float(getattr(rules, spec.setting) if spec.bound is None else spec.bound)


def _score(report: Report, name: str) -> Score:
    """A score that `_unusable` has found in the report."""
    return next(score for score in report.scores if score.name == name)


def _text(score: Score) -> str:
    return f"{score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _nats(score: Score) -> str:
    return f"{score.name} {score.value:.5f} [{score.low:.5f}, {score.high:.5f}] nats a token"
