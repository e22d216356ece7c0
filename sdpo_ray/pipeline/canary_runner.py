"""Starts a canary of a candidate, curates and observes while it lasts, and ends it.

A job that was killed resumes its canary: `canary.json` keeps the start time, and the tables keep what users did since.
"""

import time
from collections.abc import Callable

from sdpo_ray.config import Run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.io.locks import data_lock
from sdpo_ray.pipeline.canary_watch import CanaryWatch
from sdpo_ray.promote import canary as canaries
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm
from sdpo_ray.records import Canary, Candidate, Release, Report, Verdict
from sdpo_ray.telemetry import EventFile


class CanaryRunner:
    """The canaries of one run's training loop. `champion` returns the release that users are served."""

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
        """The verdict of the canary on a candidate that the gate promoted for `reasons`; PROMOTE if the mode is off.

        A canary that passed stays up until `end`, so that its users do not fall back to the champion before the
        candidate is released to everyone.
        """
        champion = self._champion()
        if self._rules.mode == "off" or champion.policy_version == candidate.policy_version:
            return Verdict.PROMOTE, reasons
        if champion.policy_version != report.champion_version:
            moved = f"the champion became v{champion.policy_version} after the evaluation"
            return Verdict.HOLD, (f"{moved} against v{report.champion_version}",)
        canary = canaries.begin(self._layout, candidate, champion, self._rules)
        self._registry.tag(candidate.policy_version, "canary", canary.mode)
        verdict, reason = self._confirm(canary) or self._watch(cycle, canary)
        return verdict, (*reasons, reason) if verdict is Verdict.PROMOTE else (reason,)

    def end(self) -> None:
        """Serve the champion to everyone. No-op if there is no canary."""
        canaries.end(self._layout)

    def end_stale(self, policy_version: int) -> None:
        """End a canary that no cycle resumes: of a version other than `policy_version`, or if the mode is now off."""
        canary = canaries.current(self._layout)
        if canary is not None and (self._rules.mode == "off" or canary.candidate.policy_version != policy_version):
            self.end()

    def _confirm(self, canary: Canary) -> tuple[Verdict, str] | None:
        """Wait until the canary application serves the candidate; a verdict with its reason if it does not."""
        timeout_s = self._run.promote.confirm_timeout_s
        try:
            confirm(f"{self._run.serve.url}/canary", canary.candidate.policy_version, timeout_s=timeout_s)
        except SwapError as error:
            return Verdict.REJECT, str(error)
        except ReleaseError as error:
            return Verdict.HOLD, f"no canary without the application canary: {error}"
        return None

    def _watch(self, cycle: int, canary: Canary) -> tuple[Verdict, str]:
        """Curate and observe until there is a ruling, the champion changes, or an operator ends the canary."""
        judge = canaries.CanaryJudge(canary, self._rules)
        watch = CanaryWatch(self._layout, self._curator, canary, judge)
        while True:
            with data_lock(self._layout):
                self._curator.advance()
                self._curator.maintain()
            if watch.observe():
                self._events.write(watch.progress(cycle, mode=canary.mode, needed=self._rules.min_answers))
            if (champion := self._champion().policy_version) != canary.champion_version:
                moved = f"the champion became v{champion} during the canary"
                return Verdict.HOLD, f"{moved}, from v{canary.champion_version}"
            if canaries.current(self._layout) != canary:
                return Verdict.HOLD, "the canary was ended by hand"
            if (ruling := judge.ruling(time.time())) is not None:
                return ruling
            time.sleep(self._run.promote.poll_s)
