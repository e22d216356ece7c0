"""The evaluation of a personal policy against the base, with the gains on its user's held-out conversations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.distill.train.update_spec import read_gains
from sdpo_ray.evaluate.discovery import find_probes
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.evaluate.runner import EvalRunner
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.io.files import read_json
from sdpo_ray.personal import store
from sdpo_ray.promote.release import confirm
from sdpo_ray.records import BASE_VERSION, Candidate, Release, Report


class PersonalEvaluation:
    """The evaluation of one run's personal policies."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._layout = run.layout
        self._questions = load_questions(run)
        self._runner = EvalRunner(run, self._questions.prompts, confirm=confirm)
        self.probes = find_probes(Suite.PERSONAL, run.promote)

    def evaluate(
        self, owner: str, candidate: Candidate, champion: Release, on_progress: Callable[[int, int], None]
    ) -> Report:
        """The report of the personal probes. `on_progress` receives answers so far and in all."""
        base = read_json(self._layout.release(BASE_VERSION), Release)
        number = store.evaluated_as(owner, candidate.policy_version)
        # The candidate's weights with its adapter merged.
        merged = replace(candidate, policy_version=number)
        base_answers = self._layout.evaluation(base.policy_version) / "answers.json"
        candidate_answers = Path(candidate.path) / "answers.json"
        report = run_suite(
            self.probes,
            ProbeInput(
                candidate=self._runner.answers(merged, candidate_answers, on_progress, temporary=True),
                base=self._runner.answers(base, base_answers, on_progress),
                gains=tuple(read_gains(Path(candidate.path))),
                is_right=self._questions.is_right,
                confidence=self._run.evaluate.confidence,
            ),
            policy_version=number,
            base_version=base.policy_version,
            champion_version=champion.policy_version,
        )
        return replace(report, policy_version=candidate.policy_version)
