"""The stage evaluate: answers of candidate, base and champion to the same prompts, and the probes' report on them."""

from collections.abc import Callable

from sdpo_ray.config import Run
from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.discovery import find_probes
from sdpo_ray.evaluate.judge import load_judge
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.evaluate.runner import EvalRunner
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.promote.release import confirm
from sdpo_ray.records import BASE_VERSION, Candidate, Release, Report
from sdpo_ray.records.run_events import ProbeFailed
from sdpo_ray.telemetry import Counters, EventFile


class Evaluation:
    """The evaluation of one run's candidates."""

    def __init__(self, run: Run, events: EventFile) -> None:
        self._run = run
        self._layout = run.layout
        self._events = events
        self._questions = load_questions(run)
        self._judge = load_judge(run)
        self._runner = EvalRunner(run, self._questions.prompts, confirm=confirm)
        self.probes = find_probes(Suite.SHARED, run.promote)

    def evaluate(
        self, cycle: int, candidate: Candidate, champion: Release, on_progress: Callable[[int, int], None]
    ) -> Report:
        """The report of all probes, also written to `report.json`. `on_progress` receives answers so far and in all.

        A probe that raises is reported by the event `ProbeFailed`, and its scores are missing from the report.
        """
        base = read_json(self._layout.release(BASE_VERSION), Release)
        counters = Counters.empty()
        report = run_suite(
            self.probes,
            ProbeInput(
                candidate=self._answers(candidate, on_progress),
                base=self._answers(base, on_progress),
                champion=self._answers(champion, on_progress),
                judge=self._judge,
                is_right=self._questions.is_right,
                confidence=self._run.evaluate.confidence,
            ),
            policy_version=candidate.policy_version,
            base_version=base.policy_version,
            champion_version=champion.policy_version,
            counters=counters,
        )
        for name, n in counters.values.items():
            self._events.write(ProbeFailed(cycle=cycle, counter=name, n=n))
        write_json(self._layout.evaluation(candidate.policy_version) / "report.json", report)
        return report

    def _answers(self, policy: Candidate | Release, on_progress: Callable[[int, int], None]) -> Answers:
        """A policy's answers; generated once, since base and champion return in every cycle."""
        path = self._layout.evaluation(policy.policy_version) / "answers.json"
        return self._runner.answers(policy, path, on_progress)
