"""A candidate among users before it is promoted: the pointer that serving follows, and what becomes of the candidate.

    its users complain more than the champion's, or its answers are slower     REJECT
    it answered enough, and nothing was found against it                       PROMOTE
    it did not answer enough in time                                           HOLD

Both questions are put to `promote.sequential_test`, each with half of `alpha`, so one may look as often as one likes. Of
complaints there is one outcome a conversation. An answer of the champion is slow when it takes longer a token than the
median of its latest ones, an answer of the candidate when it takes more than `max_slower` times that: as long as the
candidate is not slower than `max_slower` allows, its answers are slow no more often than the champion's. Answers are
compared with those of about their length, since what a short one takes is the way to and fro.
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

_SETTLED = 8
"""The champion's answers of one length whose median is a first guess at what it takes."""
_LATEST = 255
_HOUR_S = 3600


def begin(layout: Layout, candidate: Candidate, champion: Release, rules: CanaryConfig) -> Canary:
    """Put the candidate on trial, or go on with the trial that a killed job left. Raises ValueError for mode off."""
    there = current(layout)
    if there is not None and there.candidate.policy_version == candidate.policy_version:
        return there
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
    """The trial that is on; None while there is none. Raises DataError."""
    try:
        return read_json(layout.canary_pointer, Canary)
    except FileNotFoundError:
        return None


def end(layout: Layout) -> bool:
    """Let everybody meet the champion again; whether there was a trial. Safe to repeat."""
    there = layout.canary_pointer.exists()
    layout.canary_pointer.unlink(missing_ok=True)
    if there:
        fsync_directory(layout.root)
    return there


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryArm:
    """What one of the two policies has shown."""

    answers: int
    reactions: int
    """Conversations in which users reacted to an answer; only the first reaction counts."""
    complaints: int
    """How many of them complained."""


class CanaryJudge:
    """Takes in what happens, in its order, and says what follows. Reasons carry the numbers that decided."""

    def __init__(self, canary: Canary, rules: CanaryConfig) -> None:
        self._canary = canary
        self._rules = rules
        # So many answers of the champion come for each of the candidate's.
        block = max(1, round((1 - canary.share) / canary.share))
        self._complaining = HigherRate(block=block)
        self._slow = HigherRate(block=block)
        self._counts = {candidate: Counter[str]() for candidate in (True, False)}
        self._paces: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_LATEST))

    def reacted(self, complaint: bool, *, candidate: bool) -> None:
        """A user reacted to an answer; one outcome a conversation."""
        self._counts[candidate].update(reactions=1, complaints=int(complaint))
        self._complaining.add(complaint, candidate=candidate)

    def answered(self, *, seconds: float, tokens: int, candidate: bool) -> None:
        """An answer was given, of at least one token."""
        self._counts[candidate].update(answers=1)
        length, pace = tokens.bit_length(), seconds / tokens
        before = self._paces[length]
        if len(before) >= _SETTLED:
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
        """Evidence with which a breach is found."""
        return 2 / self._rules.alpha

    @property
    def complaint_evidence(self) -> float:
        return self._complaining.evidence

    @property
    def slowness_evidence(self) -> float:
        return self._slow.evidence

    @property
    def judged(self) -> int:
        """The candidate's answers that count towards `min_answers`: those that were reacted to, if anybody saw them."""
        return self.candidate.answers if self._canary.mode == "shadow" else self.candidate.reactions

    def ruling(self, now_s: float) -> tuple[Verdict, str] | None:
        """What becomes of the candidate, and why; None while the trial goes on."""
        rules, version = self._rules, self._canary.candidate.policy_version
        breaches = []
        if self.complaint_evidence >= self.evidence_needed:
            breaches.append(f"users complain more of it: {self._found(self.complaint_evidence)}")
        if self.slowness_evidence >= self.evidence_needed:
            slower = f"its answers take more than {rules.max_slower:g} times as long a token"
            breaches.append(f"{slower}: {self._found(self.slowness_evidence)}")
        if breaches:
            return Verdict.REJECT, f"{self._canary.mode} of v{version}: {'; '.join(breaches)}"
        hours = (now_s - self._canary.started_at_s) / _HOUR_S
        if self.judged >= rules.min_answers:
            return Verdict.PROMOTE, f"{self._canary.mode} of v{version}: nothing against it; {self._words()}"
        if hours >= rules.max_hours:
            few = f"{self.judged} answers of {rules.min_answers} after {hours:.1f} h"
            return Verdict.HOLD, f"{self._canary.mode} of v{version}: {few}; {self._words()}"
        return None

    def _found(self, evidence: float) -> str:
        return f"evidence {evidence:.3g} of {self.evidence_needed:g}; {self._words()}"

    def _words(self) -> str:
        mine, other = self.candidate, self.champion
        return (
            f"{mine.complaints} complaints in {mine.reactions} conversations, "
            f"{other.complaints} in {other.reactions} of v{self._canary.champion_version}; "
            f"{mine.answers} answers, {other.answers} of v{self._canary.champion_version}"
        )


def _arm(counts: Counter[str]) -> CanaryArm:
    return CanaryArm(answers=counts["answers"], reactions=counts["reactions"], complaints=counts["complaints"])
