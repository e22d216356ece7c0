"""Changes of the champion: a reviewed and confirmed promotion, and an alias that an operator moved in MLflow."""

import threading
import time

from sdpo_ray.config import Run
from sdpo_ray.errors import SwapError
from sdpo_ray.io.files import read_json
from sdpo_ray.promote.alias_sync import AliasAction, sync_alias
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm, point_at, require_served_release, rollback
from sdpo_ray.records import BASE_VERSION, Candidate, Decision, Release, Report, Verdict, cycle_of_version
from sdpo_ray.records.run_events import AliasFollowed, AliasRestored, ReviewAwaited, Reviewed
from sdpo_ray.telemetry import EventFile


class Promotion:
    """Moves MLflow's alias `champion` and the release pointer of one run together."""

    def __init__(self, run: Run, registry: Registry, events: EventFile) -> None:
        self._run = run
        self._layout = run.layout
        self._registry = registry
        self._events = events
        # The release stage and the thread that calls `sync_alias` both move alias and pointer.
        self._lock = threading.Lock()

    def champion(self) -> Release:
        """The release that users are served. Raises ReleaseError before the first one."""
        return require_served_release(self._layout)

    def await_review(self, cycle: int, decision: Decision) -> tuple[Verdict, tuple[str, ...]]:
        """Wait until a reviewer sets the model version's tag `review` to `approved` or `rejected` in MLflow."""
        self._events.write(ReviewAwaited(cycle=cycle, policy_version=decision.policy_version))
        while (review := self._registry.review(decision.policy_version)) is None:
            time.sleep(self._run.promote.poll_s)
        self._events.write(Reviewed(cycle=cycle, policy_version=decision.policy_version, review=review))
        if review == "approved":
            return Verdict.PROMOTE, decision.reasons
        return Verdict.REJECT, (f"v{decision.policy_version} was rejected in review",)

    def promote(
        self, candidate: Candidate, report: Report, reasons: tuple[str, ...]
    ) -> tuple[Verdict, tuple[str, ...]]:
        """Move alias and pointer to the candidate and wait until every replica serves it.

        Moves them back and returns REJECT if an engine refuses the candidate; HOLD if the champion is no longer the one
        it was evaluated against. Raises ReleaseError if the replicas do not confirm in time.
        """
        with self._lock:
            champion = self.champion()
            if champion.policy_version not in (report.champion_version, candidate.policy_version):
                moved = f"the champion became v{champion.policy_version} after the evaluation"
                return Verdict.HOLD, (f"{moved} against v{report.champion_version}",)
            self._registry.set_champion(candidate.policy_version)
            release = point_at(self._layout, candidate)
            try:
                confirm(
                    self._run.serve.url,
                    candidate.policy_version,
                    timeout_s=self._run.promote.confirm_timeout_s,
                    answers=self._run.serve.num_replicas,
                )
            except SwapError as error:
                back = release.previous_version if release.previous_version is not None else BASE_VERSION
                self._registry.set_champion(back)
                rollback(self._layout, back)
                return Verdict.REJECT, (str(error),)
        return Verdict.PROMOTE, reasons

    def sync_alias(self) -> None:
        """Serve the version that an operator moved the alias to, if it was released or passed the gate.

        Any other alias is moved back to the champion.
        """
        with self._lock:
            result = sync_alias(
                self._layout,
                champion=self._registry.champion_version,
                set_champion=self._registry.set_champion,
                passed=self._passed,
            )
        if result.action is AliasAction.STAY:
            return
        event = AliasFollowed if result.action is AliasAction.FOLLOW else AliasRestored
        self._events.write(event(alias_version=result.alias_version, champion_version=result.release.policy_version))

    def _passed(self, policy_version: int) -> Candidate | None:
        """The candidate of a version that the gate promoted. From the run's own records: MLflow's can be edited."""
        directory = self._layout.cycle(cycle_of_version(policy_version))
        if not (directory / "decide.json").exists():
            return None
        verdict = read_json(directory / "decide.json", Decision).verdict
        if verdict is not Verdict.PROMOTE or self._registry.review(policy_version) == "rejected":
            return None
        return read_json(directory / "distill.json", Candidate)
