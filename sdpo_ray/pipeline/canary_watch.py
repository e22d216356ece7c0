"""New observations of a canary and its champion, from the tables and from the files of a shadow release."""

from collections.abc import Iterator
from pathlib import Path

from sdpo_ray.curate.online_metrics import OnlineMetrics
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.canary import CanaryJudge
from sdpo_ray.records import Canary
from sdpo_ray.records.run_events import CanaryProgress, ShadowResponse
from sdpo_ray.telemetry import EventReader


class CanaryWatch:
    """Feeds a judge with what was observed since the last call of `observe`."""

    def __init__(self, layout: Layout, curator: Curator, canary: Canary, judge: CanaryJudge) -> None:
        self._judge = judge
        self._is_candidate = {canary.candidate.policy_version: True, canary.champion_version: False}
        since_s = canary.started_at_s
        self._metrics = OnlineMetrics(curator.turns, curator.feedback, curator.interactions, since_s=since_s)
        self._shadow = _ShadowResponses(layout.canary_answers(canary.candidate.policy_version), since_s=since_s)
        self._copies_failed = 0

    def observe(self) -> bool:
        """True if there was anything new."""
        observed = 0
        for answer in self._metrics.finished():
            candidate = self._is_candidate.get(answer.policy_version)
            if candidate is not None:
                self._judge.answered(seconds=answer.seconds, tokens=answer.tokens, candidate=candidate)
                observed += 1
        for copy in self._shadow.read_new():
            if copy.tokens and not copy.error:
                self._judge.answered(seconds=copy.seconds, tokens=copy.tokens, candidate=True)
            else:
                self._copies_failed += 1
            observed += 1
        for reaction in self._metrics.reactions():
            candidate = self._is_candidate.get(reaction.policy_version)
            if candidate is not None:
                self._judge.reacted(reaction.complaint, candidate=candidate)
                observed += 1
        return observed > 0

    def progress(self, cycle: int, *, mode: str, needed: int) -> CanaryProgress:
        """The judge's counts and evidence so far; `needed` is `promote.canary.min_answers`."""
        judge = self._judge
        return CanaryProgress(
            cycle=cycle,
            mode=mode,
            judged=judge.judged,
            needed=needed,
            answers=judge.candidate.answers,
            answers_champion=judge.champion.answers,
            reactions=judge.candidate.reactions,
            reactions_champion=judge.champion.reactions,
            complaints=judge.candidate.complaints,
            complaints_champion=judge.champion.complaints,
            copies_failed=self._copies_failed,
            evidence_complaints=round(judge.complaint_evidence, 4),
            evidence_slow=round(judge.slowness_evidence, 4),
            evidence_needed=judge.evidence_needed,
        )


class _ShadowResponses:
    """Reads the files that `serve.canary.shadow` writes: one for each replica, which may appear at any time."""

    def __init__(self, folder: Path, *, since_s: float) -> None:
        self._folder = folder
        self._since_s = since_s
        self._readers: dict[Path, EventReader] = {}

    def read_new(self) -> Iterator[ShadowResponse]:
        for path in sorted(self._folder.glob("*.jsonl")):
            reader = self._readers.setdefault(path, EventReader(path))
            for event in reader.read_new():
                # An earlier canary of the same version wrote to the same folder.
                if isinstance(event, ShadowResponse) and event.at_s >= self._since_s:
                    yield event
