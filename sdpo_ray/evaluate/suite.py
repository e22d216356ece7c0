"""Runs probes over the answers of a candidate, the base and the champion, and collects their scores in a report."""

import logging
from collections.abc import Sequence

from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.probe import Probe, ProbeInput
from sdpo_ray.records import Report, Score
from sdpo_ray.telemetry import Counters

logger = logging.getLogger(__name__)


def run_suite(
    probes: Sequence[Probe],
    measured: ProbeInput,
    *,
    policy_version: int,
    base_version: int,
    champion_version: int,
    counters: Counters | None = None,
) -> Report:
    """Report with the scores of every probe.

    A probe that raises, or returns other scores than it declares, is logged and counted in `counters` as
    `evaluate.<probe>.<exception>`; its scores are missing from the report, which the gate rejects. Raises DataError
    when there is no answer, or the sets of answers are not to the same prompts or not of the versions given here. The
    personal suite has no answers of the champion.
    """
    prompts = [answer.prompt for answer in measured.candidate]
    _require(measured.candidate, policy_version, prompts)
    _require(measured.base, base_version, prompts)
    if measured.champion:
        _require(measured.champion, champion_version, prompts)
    return Report(
        policy_version=policy_version,
        base_version=base_version,
        champion_version=champion_version,
        confidence=measured.confidence,
        scores=tuple(score for probe in probes for score in _scores(probe, measured, policy_version, counters)),
    )


def _scores(probe: Probe, measured: ProbeInput, policy_version: int, counters: Counters | None) -> tuple[Score, ...]:
    try:
        scores = probe.run(measured)
        if (names := [score.name for score in scores]) != (declared := [spec.name for spec in probe.scores]):
            raise DataError(f"the probe {probe.name} returned {names}, and declares {declared}")
    except Exception as error:
        # A judge may fail in any way; one broken probe must not hide the scores of the others.
        logger.exception("v%d: the probe %s failed", policy_version, probe.name)
        if counters is not None:
            counters.add(f"evaluate.{probe.name}.{type(error).__name__}")
        return ()
    return scores


def _require(answers: Answers, version: int, prompts: list[str]) -> None:
    if not answers or [answer.prompt for answer in answers] != prompts:
        raise DataError(f"v{version} answered {len(answers)} prompts, not the candidate's {len(prompts)}")
    if others := {answer.policy_version for answer in answers} - {version}:
        raise DataError(f"answers said to be of v{version} are of {sorted(others)}")
