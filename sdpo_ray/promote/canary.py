"""A canary release: its pointer, which serving follows, and the decision on the candidate.

    its users complain more than the champion's, or its answers are slower     REJECT
    it answered enough, and no evidence was found against it                   PROMOTE
    it did not answer enough in time                                           HOLD

Both questions go to `promote.sequential_test`, each with half of `alpha`, so they may be looked at after every answer.
For complaints there is one outcome for each conversation. An answer of the champion is slow if it takes longer per
token than the median of the champion's latest answers; an answer of the candidate, if it takes more than `max_slower`
times that median. So the answers of a candidate within `max_slower` are slow no more often than the champion's. Answers
are compared with answers of similar length, since the time of a short one is mostly network and queue.
"""

import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from statistics import median

from sdpo_ray.config import CanaryConfig
from sdpo_ray.io.files import fsync_directory, read_json, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import release_of
from sdpo_ray.promote.sequential_test import HigherRate
from sdpo_ray.records import Canary, Candidate, Release, Verdict

_MIN_FOR_MEDIAN = 8
"""Answers of the champion of one length, before their median is compared with."""
_LATEST = 255
"""Answers of the champion of one length that the median is taken over."""
_HOUR_S = 3600


def begin(layout: Layout, candidate: Candidate, champion: Release, rules: CanaryConfig) -> Canary:
    """Start a canary of the candidate, or resume the one that a killed job left. Raises ValueError for mode off."""
    running = current(layout)
    if running is not None and running.candidate.policy_version == candidate.policy_version:
        return running
    if rules.mode == "off":
        raise ValueError("promote.canary.mode is off")
    canary = Canary(
        candidate=release_of(layout, candidate, previous_version=champion.policy_version),
        champion_version=champion.policy_version,
        mode=rules.mode,
        share=rules.share,
        started_at_s=time.time(),
    )
    write_json(layout.canary_pointer, canary)
    return canary


def current(layout: Layout) -> Canary | None:
    """The canary that runs now; None where there is none. Raises DataError."""
    try:
        return read_json(layout.canary_pointer, Canary)
    except FileNotFoundError:
        return None


def end(layout: Layout) -> bool:
    """End the canary, so that every user is served by the champion; whether there was one. Safe to repeat."""
    existed = layout.canary_pointer.exists()
    layout.canary_pointer.unlink(missing_ok=True)
    if existed:
        fsync_directory(layout.root)
    return existed


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryArm:
    """Counts of one of the two policies. Made by `CanaryJudge`; read by `pipeline.canary_runner`."""

    answers: int
    reactions: int
    """Conversations in which the user reacted to an answer; only the first reaction counts."""
    complaints: int
    """Those of them whose first reaction was a complaint."""


class CanaryJudge:
    """Decides on a canary from outcomes in the order of time. Reasons carry the numbers that decided."""

    def __init__(self, canary: Canary, rules: CanaryConfig) -> None:
        self._canary = canary
        self._rules = rules
        # Number of the champion's answers for each of the candidate's.
        block = max(1, round((1 - canary.share) / canary.share))
        self._complaining = HigherRate(block=block)
        self._slow = HigherRate(block=block)
        self._counts = {candidate: Counter[str]() for candidate in (True, False)}
        self._paces: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_LATEST))

    def reacted(self, complaint: bool, *, candidate: bool) -> None:
        """Add the first reaction of a conversation."""
        self._counts[candidate].update(reactions=1, complaints=int(complaint))
        self._complaining.add(complaint, candidate=candidate)

    def answered(self, *, seconds: float, tokens: int, candidate: bool) -> None:
        """Add an answer of at least one token, with the seconds that it took."""
        self._counts[candidate].update(answers=1)
        length, pace = tokens.bit_length(), seconds / tokens
        before = self._paces[length]
        if len(before) >= _MIN_FOR_MEDIAN:
            bound = median(before) * (self._rules.max_slower if candidate else 1.0)
            self._slow.add(pace > bound, candidate=candidate, kind=length)
        if not candidate:
            before.append(pace)

    @property
    def candidate(self) -> CanaryArm:
        return _arm(self._counts[True])

    @property
    def champion(self) -> CanaryArm:
        return _arm(self._counts[False])

    @property
    def evidence_needed(self) -> float:
        """Evidence at which the candidate is rejected."""
        return 2 / self._rules.alpha

    @property
    def complaint_evidence(self) -> float:
        return self._complaining.evidence

    @property
    def slowness_evidence(self) -> float:
        return self._slow.evidence

    @property
    def judged(self) -> int:
        """The candidate's answers that count towards `min_answers`: those that were reacted to; in shadow, all."""
        return self.candidate.answers if self._canary.mode == "shadow" else self.candidate.reactions

    def ruling(self, now_s: float) -> tuple[Verdict, str] | None:
        """Verdict on the candidate with its reason; None while the canary continues."""
        rules, version = self._rules, self._canary.candidate.policy_version
        breaches = []
        if self.complaint_evidence >= self.evidence_needed:
            breaches.append(f"users complain more of it: {self._evidence(self.complaint_evidence)}")
        if self.slowness_evidence >= self.evidence_needed:
            slower = f"its answers take more than {rules.max_slower:g} times as long a token"
            breaches.append(f"{slower}: {self._evidence(self.slowness_evidence)}")
        if breaches:
            return Verdict.REJECT, f"{self._canary.mode} of v{version}: {'; '.join(breaches)}"
        hours = (now_s - self._canary.started_at_s) / _HOUR_S
        if self.judged >= rules.min_answers:
            return Verdict.PROMOTE, f"{self._canary.mode} of v{version}: nothing against it; {self._counts_text()}"
        if hours >= rules.max_hours:
            few = f"{self.judged} answers of {rules.min_answers} after {hours:.1f} h"
            return Verdict.HOLD, f"{self._canary.mode} of v{version}: {few}; {self._counts_text()}"
        return None

    def _evidence(self, evidence: float) -> str:
        return f"evidence {evidence:.3g} of {self.evidence_needed:g}; {self._counts_text()}"

    def _counts_text(self) -> str:
        ours, theirs = self.candidate, self.champion
        return (
            f"{ours.complaints} complaints in {ours.reactions} conversations, "
            f"{theirs.complaints} in {theirs.reactions} of v{self._canary.champion_version}; "
            f"{ours.answers} answers, {theirs.answers} of v{self._canary.champion_version}"
        )


def _arm(counts: Counter[str]) -> CanaryArm:
    return CanaryArm(answers=counts["answers"], reactions=counts["reactions"], complaints=counts["complaints"])
