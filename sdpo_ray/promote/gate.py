"""The gate between an update and the users: report and rules in, verdict out; no I/O.

    a score is missing or impossible            REJECT
    the candidate harms                         REJECT, naming every harm
    it beats the champion beyond doubt          PROMOTE
    otherwise                                   HOLD: no signal

A personal policy has to show what its user gained, in the champion's place. Fails closed. Reasons carry the numbers
that decided.
"""

import math
from collections.abc import Iterator, Sequence

from sdpo_ray.config import PersonalConfig, PromoteConfig
from sdpo_ray.records import Decision, Report, Score, Verdict

REQUIRED = (
    "win_rate.vs_base.ties_dropped",
    "win_rate.vs_base.ties_half",
    "win_rate.vs_base.coverage",
    "win_rate.vs_champion.ties_dropped",
    "win_rate.vs_champion.ties_half",
    "win_rate.vs_champion.coverage",
    "retention",
    "retention.drop_vs_base",
    "collapse.length_ratio",
    "collapse.repetition",
    "collapse.truncated",
    "collapse.empty",
)
"""Everything the suite measures: a probe that failed says nothing, and nothing promotes nobody."""

REQUIRED_OF_PERSONAL = ("gain", *(name for name in REQUIRED if not name.startswith("win_rate.")))
MIN_CONVERSATIONS = 5
"""Held-out conversations of one user under which nothing is known of what they gained."""

MAY_REST_ON_NOTHING = frozenset({"win_rate.vs_base.ties_dropped", "win_rate.vs_champion.ties_dropped"})
"""Without a single decided pair these know nothing, which is no contradiction."""

MAX_EMPTY = 0.02
"""Share of answers without a visible character. Short is a taste; silence is not."""


def decide(report: Report, rules: PromoteConfig) -> Decision:
    """Judge a candidate by its report."""
    verdict, reasons = _judge(report, rules)
    return Decision(policy_version=report.policy_version, verdict=verdict, reasons=reasons)


def decide_personal(report: Report, rules: PromoteConfig, personal: PersonalConfig) -> Decision:
    """Judge a personal policy by its report: whether its user gained, and nothing was broken for it."""
    verdict, reasons = _judge_personal(report, rules, personal)
    return Decision(policy_version=report.policy_version, verdict=verdict, reasons=reasons)


def _judge_personal(report: Report, rules: PromoteConfig, personal: PersonalConfig) -> tuple[Verdict, tuple[str, ...]]:
    if unusable := tuple(_unusable(report, REQUIRED_OF_PERSONAL)):
        return Verdict.REJECT, unusable
    scores = {score.name: score for score in report.scores}
    gained = scores["gain"]
    harms = [*_breakages(scores, rules)]
    if gained.high < 0:
        harms.append(f"{_nats(gained)}: it goes against what its user asked for")
    if harms:
        return Verdict.REJECT, tuple(harms)
    if gained.n < MIN_CONVERSATIONS:
        return Verdict.HOLD, (f"no signal: {gained.n} conversations were held out, {MIN_CONVERSATIONS} are needed",)
    if gained.low > personal.min_gain:
        return Verdict.PROMOTE, (f"{_nats(gained)} is above {personal.min_gain:g}",)
    return Verdict.HOLD, (f"no signal: {_nats(gained)} is not above {personal.min_gain:g} with its low end",)


def _judge(report: Report, rules: PromoteConfig) -> tuple[Verdict, tuple[str, ...]]:
    if unusable := tuple(_unusable(report, REQUIRED)):
        return Verdict.REJECT, unusable
    scores = {score.name: score for score in report.scores}
    if harms := tuple(_harms(scores, rules)):
        return Verdict.REJECT, harms
    against_champion = scores["win_rate.vs_champion.ties_half"]
    found = f"{_words(against_champion)} against v{report.champion_version}"
    if against_champion.low > rules.min_win_rate:
        return Verdict.PROMOTE, (f"{found} is above {rules.min_win_rate:.3f}",)
    return Verdict.HOLD, (f"no signal: {found} is not above {rules.min_win_rate:.3f} with its low end",)


def _unusable(report: Report, required: Sequence[str]) -> Iterator[str]:
    for name in required:
        score = report.score(name)
        if score is None:
            yield f"{name} is missing"
        elif not all(math.isfinite(number) for number in (score.value, score.low, score.high)):
            yield f"{_words(score)} is not a number"
        elif not score.low <= score.value <= score.high:
            yield f"{_words(score)} lies outside its own interval"
        elif score.n < 1 and name not in MAY_REST_ON_NOTHING:
            yield f"{name} rests on no answer"


def _harms(scores: dict[str, Score], rules: PromoteConfig) -> Iterator[str]:
    yield from _breakages(scores, rules)
    against_champion = scores["win_rate.vs_champion.ties_half"]
    if against_champion.high < 0.5:
        yield f"{_words(against_champion)}: it loses to the champion"


def _breakages(scores: dict[str, Score], rules: PromoteConfig) -> Iterator[str]:
    least = {"retention": rules.min_retention}
    most = {
        "retention.drop_vs_base": rules.max_retention_drop,
        "collapse.length_ratio": rules.max_length_ratio,
        "collapse.repetition": rules.max_repetition,
        "collapse.empty": MAX_EMPTY,
    }
    for name, bound in least.items():
        if scores[name].value < bound:
            yield f"{_words(scores[name])} is under {bound:.3f}"
    for name, bound in most.items():
        if scores[name].value > bound:
            yield f"{_words(scores[name])} is over {bound:.3f}"


def _words(score: Score) -> str:
    return f"{score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _nats(score: Score) -> str:
    return f"{score.name} {score.value:.5f} [{score.low:.5f}, {score.high:.5f}] nats a token"
