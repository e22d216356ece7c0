"""The trial of a candidate among users, where a run asks for one: begun, watched while curation goes on, and ended.

Killed at any moment it goes on where it was: `canary.json` says since when, and the tables what came since.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sdpo_ray.config import Run
from sdpo_ray.curate.online_metrics import OnlineMetrics
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.io.locks import data_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote import canary as canaries
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm
from sdpo_ray.records import Canary, Candidate, Release, Report, Verdict
from sdpo_ray.telemetry import Event, EventFile


class CanaryRunner:
    """The trials of one run's training loop. `champion` says what users are served."""

    def __init__(
        self, run: Run, curator: Curator, registry: Registry, events: EventFile, champion: Callable[[], Release]
    ) -> None:
        self._run = run
        self._rules = run.promote.canary
        self._layout = run.layout
        self._curator = curator
        self._registry = registry
        self._events = events
        self._champion = champion

    def judge(
        self, cycle: int, candidate: Candidate, report: Report, reasons: tuple[str, ...]
    ) -> tuple[Verdict, tuple[str, ...]]:
        """What users make of a candidate that passed for `reasons`; at once where the run asks for no trial.

        A trial that was passed lasts until `end`: its users meet nobody else before the candidate is everybody's.
        """
        champion = self._champion()
        if self._rules.mode == "off" or champion.policy_version == candidate.policy_version:
            return Verdict.PROMOTE, reasons
        if champion.policy_version != report.champion_version:
            moved = f"the champion became v{champion.policy_version} after the evaluation"
            return Verdict.HOLD, (f"{moved} against v{report.champion_version}",)
        canary = canaries.begin(self._layout, candidate, champion, self._rules)
        self._registry.tag(candidate.policy_version, "canary", canary.mode)
        verdict, reason = self._stopped(canary) or self._watch(cycle, canary)
        return verdict, (*reasons, reason) if verdict is Verdict.PROMOTE else (reason,)

    def end(self) -> None:
        """Let everybody meet the champion. Safe to repeat, and where there was no trial."""
        canaries.end(self._layout)

    def end_others(self, policy_version: int) -> None:
        """End a trial that nobody goes on with: of another candidate than this, or of a run that asks for none now."""
        canary = canaries.current(self._layout)
        if canary is not None and (self._rules.mode == "off" or canary.candidate.policy_version != policy_version):
            self.end()

    def _stopped(self, canary: Canary) -> tuple[Verdict, str] | None:
        """Wait until the canary serves the candidate; why there can be no trial, where it does not."""
        timeout_s = self._run.promote.confirm_timeout_s
        try:
            confirm(f"{self._run.serve.url}/canary", canary.candidate.policy_version, timeout_s=timeout_s)
        except SwapError as error:
            return Verdict.REJECT, str(error)
        except ReleaseError as error:
            return Verdict.HOLD, f"no trial without the application canary: {error}"
        return None

    def _watch(self, cycle: int, canary: Canary) -> tuple[Verdict, str]:
        watch = _Watch(self._layout, self._curator, canary, canaries.CanaryJudge(canary, self._rules))
        while True:
            with data_lock(self._layout):
                self._curator.advance()
                self._curator.maintain()
            if watch.look():
                self._events.write("canary", cycle, mode=canary.mode, needed=self._rules.min_answers, **watch.facts)
            if (champion := self._champion().policy_version) != canary.champion_version:
                return (
                    Verdict.HOLD,
                    f"the champion became v{champion} during the canary, from v{canary.champion_version}",
                )
            if canaries.current(self._layout) != canary:
                return Verdict.HOLD, "the canary was ended by hand"
            if (ruling := watch.judge.ruling(time.time())) is not None:
                return ruling
            time.sleep(self._run.promote.poll_s)


class _Watch:
    """Tells a judge what is new."""

    def __init__(self, layout: Layout, curator: Curator, canary: Canary, judge: canaries.CanaryJudge) -> None:
        self.judge = judge
        self._is_candidate = {canary.candidate.policy_version: True, canary.champion_version: False}
        since_s = canary.started_at_s
        self._reactions = OnlineMetrics(curator.turns, curator.feedback, curator.interactions, since_s=since_s)
        self._copies = _Copies(layout.canary_answers(canary.candidate.policy_version), since_s=since_s)
        self._failed = 0

    def look(self) -> bool:
        """Whether there was anything new."""
        new = 0
        for given in self._reactions.given():
            candidate = self._is_candidate.get(given.policy_version)
            if candidate is not None:
                self.judge.answered(seconds=given.seconds, tokens=given.tokens, candidate=candidate)
                new += 1
        for copy in self._copies.new():
            seconds, tokens = float(copy.facts["seconds"] or 0), int(copy.facts["tokens"] or 0)
            if tokens and not copy.facts["error"]:
                self.judge.answered(seconds=seconds, tokens=tokens, candidate=True)
            else:
                self._failed += 1
            new += 1
        for reaction in self._reactions.reactions():
            candidate = self._is_candidate.get(reaction.policy_version)
            if candidate is not None:
                self.judge.reacted(reaction.complaint, candidate=candidate)
                new += 1
        return new > 0

    @property
    def facts(self) -> dict[str, int | float]:
        """For `events.jsonl` and the screen."""
        judge = self.judge
        return {
            "judged": judge.judged,
            "answers": judge.candidate.answers,
            "answers_champion": judge.champion.answers,
            "reactions": judge.candidate.reactions,
            "reactions_champion": judge.champion.reactions,
            "complaints": judge.candidate.complaints,
            "complaints_champion": judge.champion.complaints,
            "copies_failed": self._failed,
            "evidence_complaints": round(judge.complaint_evidence, 4),
            "evidence_slow": round(judge.slowness_evidence, 4),
            "evidence_needed": judge.evidence_needed,
        }


class _Copies:
    """What `serve.canary.shadow` wrote down of a candidate's answers, line by line as it comes."""

    def __init__(self, folder: Path, *, since_s: float) -> None:
        self._folder = folder
        self._since_s = since_s
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Event]:
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                # A torn last line is one that was not written yet.
                lines = file.read().split(b"\n")[:-1]
            self._read[path] = self._read.get(path, 0) + sum(len(line) + 1 for line in lines)
            events = [msgspec.json.decode(line, type=Event) for line in lines]
            yield from (event for event in events if event.at_s >= self._since_s)
