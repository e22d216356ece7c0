"""All probes over one set of answers: a candidate's, the base's and the champion's to the same prompts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.judge import Judge
from sdpo_ray.evaluate.probes.collapse import collapse
from sdpo_ray.evaluate.probes.gain import gain
from sdpo_ray.evaluate.probes.retention import IsRight, retention
from sdpo_ray.evaluate.probes.win_rate import win_rate
from sdpo_ray.records import Gain, Report, Score
from sdpo_ray.telemetry import Counters

logger = logging.getLogger(__name__)

Probe: TypeAlias = Callable[[], tuple[Score, ...]]


def run_suite(
    *,
    candidate: Answers,
    base: Answers,
    champion: Answers,
    judge: Judge,
    is_right: IsRight,
    policy_version: int,
    base_version: int,
    champion_version: int,
    confidence: float,
    counters: Counters | None = None,
) -> Report:
    """Run every probe. The scores of a probe that raises are missing from the report, which the gate refuses.

    Such a probe is logged and counted in `counters` as `evaluate.<probe>.<exception>`. Raises DataError when
    there is no answer, or the three sets do not answer the same prompts as the versions they claim to be.
    """
    for answers, version in ((candidate, policy_version), (base, base_version), (champion, champion_version)):
        _require(answers, version, prompts=[answer.prompt for answer in candidate])
    probes: dict[str, Probe] = {
        "win_rate.vs_base": lambda: win_rate("vs_base", candidate, base, judge=judge, confidence=confidence),
        "win_rate.vs_champion": lambda: win_rate(
            "vs_champion", candidate, champion, judge=judge, confidence=confidence
        ),
        "retention": lambda: retention(candidate, base, is_right=is_right, confidence=confidence),
        "collapse": lambda: collapse(candidate, base, confidence=confidence),
    }
    return Report(
        policy_version=policy_version,
        base_version=base_version,
        champion_version=champion_version,
        confidence=confidence,
        scores=_scores(probes, policy_version, counters),
    )


def run_personal_suite(
    *,
    candidate: Answers,
    base: Answers,
    gains: Sequence[Gain],
    is_right: IsRight,
    policy_version: int,
    base_version: int,
    champion_version: int,
    confidence: float,
    counters: Counters | None = None,
) -> Report:
    """The probes of a personal policy: what it gained for its user, and that it broke nothing. As `evaluate`.

    Nobody judges its answers against the champion's: its user's taste is its own.
    """
    for answers, version in ((candidate, policy_version), (base, base_version)):
        _require(answers, version, prompts=[answer.prompt for answer in candidate])
    probes: dict[str, Probe] = {
        "gain": lambda: gain(gains, confidence=confidence),
        "retention": lambda: retention(candidate, base, is_right=is_right, confidence=confidence),
        "collapse": lambda: collapse(candidate, base, confidence=confidence),
    }
    return Report(
        policy_version=policy_version,
        base_version=base_version,
        champion_version=champion_version,
        confidence=confidence,
        scores=_scores(probes, policy_version, counters),
    )


def _scores(probes: Mapping[str, Probe], policy_version: int, counters: Counters | None) -> tuple[Score, ...]:
    scores: list[Score] = []
    for name, probe in probes.items():
        try:
            scores += probe()
        except Exception as error:
            # A judge may fail in any way; one broken probe must not hide what the others found.
            logger.exception("v%d: the probe %s failed", policy_version, name)
            if counters is not None:
                counters.add(f"evaluate.{name}.{type(error).__name__}")
    return tuple(scores)


def _require(answers: Answers, version: int, *, prompts: list[str]) -> None:
    if not answers or [answer.prompt for answer in answers] != prompts:
        raise DataError(f"v{version} answered {len(answers)} prompts, not the candidate's {len(prompts)}")
    if strangers := {answer.policy_version for answer in answers} - {version}:
        raise DataError(f"answers said to be of v{version} are of {sorted(strangers)}")
