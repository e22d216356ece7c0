"""The update of a personal policy around a fake learner: its outcomes, and what is on disk afterwards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run, load_run, parse_run
from sdpo_ray.distill.train.update_spec import GAINS_FILE
from sdpo_ray.errors import ConfigError, DataError, LearnerError, NotReady, ReleaseError
from sdpo_ray.evaluate.client import Answer, Answers
from sdpo_ray.evaluate.questions import Questions
from sdpo_ray.io.files import sealed_directory, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import evaluation, trainer
from sdpo_ray.personal import store as personal_store
from sdpo_ray.personal.config import distill_config
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.trainer import PersonalTrainer, ProgressCallbacks
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import Candidate, Fingerprint, FinishReason, Gain, Interaction, Release, Turn, Verdict
from sdpo_ray.records.run_events import PersonalUpdateFinished
from sdpo_ray.tables.snapshot_files import read_interactions
from sdpo_ray.telemetry import read_events
from tests.support import builders
from tests.support.erasing import VICTIM, erase
from tests.support.personal import owner_of
from tests.support.user_data import hits, interactions_of, people, store

QUIET = ProgressCallbacks(on_step=lambda step: None, on_progress=lambda done, total: None)
RECORDED: list[tuple[str, str, CycleRecord]] = []


class Runs:
    """Stands for MLflow."""

    def record(self, owner: str, name: str, entry: CycleRecord) -> None:
        RECORDED.append((owner, name, entry))

    def erase(self, owners: Any) -> int:
        return 0


class Learner:
    """Makes a candidate without training; calls `meanwhile` in the middle."""

    def __init__(self) -> None:
        self.nats = 0.5
        self.meanwhile: Callable[[], object] = lambda: None
        self.arguments: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> Candidate:
        self.arguments = arguments
        held_out = read_interactions(arguments["held_out"])
        candidate = Candidate(
            policy_version=arguments["policy_version"],
            parent_version=arguments["parent"].policy_version,
            path=str(arguments["out"]),
            snapshot_id=arguments["snapshot"].snapshot_id,
            fingerprint=Fingerprint(token_ids=(), logprobs=()),
            steps=(),
        )
        self.meanwhile()
        with sealed_directory(arguments["out"]) as aside:
            (aside / "adapter").mkdir()
            (aside / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
            gains = [
                Gain(interaction_id=each.interaction_id, conversation=str(n), num_tokens=2, nats=self.nats * (9 + n))
                for n, each in enumerate(held_out)
            ]
            write_json(aside / GAINS_FILE, gains)
        return candidate


@pytest.fixture
def run(layout: Layout) -> Run:
    """Two users with forty interactions each, under v0."""
    said = people(layout, ("ann", VICTIM), follow_ups=40)
    turns = [turn for each in said.values() for turn in each]
    store(layout, turns, [each for one in said.values() for each in conversations_of(one)])
    for version in (1, 3, 4):
        write_json(layout.release(version), builders.release(layout.root / f"v{version}", policy_version=version))
    serve(layout, 3)
    days = {"max_age_days": 1e6, "max_user_share": 1.0}
    return parse_run({"root": str(layout.root), "serve": {"adapters": 1}, "curate": days})


def conversations_of(turns: list[Turn]) -> list[Interaction]:
    """One conversation each, with fixed digests: a quarter of them is held out."""
    return [replace(each, conversation=f"{n:032x}") for n, each in enumerate(interactions_of(turns))]


def serve(layout: Layout, version: int) -> None:
    write_json(layout.release_pointer, builders.release(layout.root / f"v{version}", policy_version=version))


def good_answers(policy: Candidate | Release, path: Path, on_progress: Callable[[int, int], None]) -> Answers:
    return tuple(
        Answer(
            prompt=f"q{n}", text="Paris.", num_tokens=2, finish_reason=FinishReason.STOP,
            policy_version=policy.policy_version,
        )
        for n in range(40)
    )  # fmt: skip


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    made = Learner()
    RECORDED.clear()
    monkeypatch.setattr(trainer, "distill", made)
    monkeypatch.setattr(PersonalRuns, "of", lambda run: Runs())
    questions = Questions(prompts=tuple(f"q{n}" for n in range(40)), is_right=lambda prompt, text: True)
    monkeypatch.setattr(evaluation, "load_questions", lambda run: questions)
    monkeypatch.setattr(evaluation.EvalRunner, "answers", lambda self, *args, temporary=False: good_answers(*args))
    return made


def test_a_policy_that_gained_is_served_over_the_champion_and_recorded(run: Run, layout: Layout, learner: Learner):
    ann = owner_of(layout, "ann")
    attempt = PersonalTrainer(run, QUIET).learn(ann)
    assert attempt.verdict is Verdict.PROMOTE, attempt.reasons
    policy = personal_store.served_policy(layout, ann.digest)
    assert policy is not None
    assert (policy.base_version, policy.name) == (3, attempt.name)
    assert learner.arguments["parent"].policy_version == 3
    assert learner.arguments["base"] == Path(learner.arguments["parent"].path)
    ((owner, name, entry),) = RECORDED
    assert (owner, name, entry.snapshot) == (ann.digest, attempt.name, attempt.snapshot)
    assert entry.run.distill == distill_config(run)
    (event,) = [each for each in read_events(layout.events) if isinstance(each, PersonalUpdateFinished)]
    assert event.verdict is Verdict.PROMOTE
    assert hits(layout.events.parent, ["ann"]).keys().isdisjoint({"events.jsonl"})


def test_a_policy_that_lost_is_not_served_and_its_reason_is_kept(run: Run, layout: Layout, learner: Learner):
    learner.nats = -0.5
    ann = owner_of(layout, "ann")
    attempt = PersonalTrainer(run, QUIET).learn(ann)
    assert attempt.verdict is Verdict.REJECT
    assert "against what its user asked for" in attempt.reasons[0]
    assert personal_store.served_policy(layout, ann.digest) is None
    assert personal_store.newest_attempt(layout, ann.digest) == attempt
    assert RECORDED[0][1] == ""


def test_a_champion_that_changed_meanwhile_holds_the_policy(run: Run, layout: Layout, learner: Learner):
    learner.meanwhile = lambda: serve(layout, 4)
    ann = owner_of(layout, "ann")
    attempt = PersonalTrainer(run, QUIET).learn(ann)
    assert attempt.verdict is Verdict.HOLD
    assert attempt.reasons == ("the champion is v4 by now, and it is over v3",)
    assert personal_store.served_policy(layout, ann.digest) is None
    assert not list(layout.personal.rglob("adapter"))


def test_an_erasure_meanwhile_leaves_nothing_of_the_update(run: Run, layout: Layout, learner: Learner):
    learner.meanwhile = lambda: erase(layout)
    for user in (VICTIM, None):
        owner = owner_of(layout, user)
        if user is None:
            said = people(layout, (VICTIM,), follow_ups=40)[VICTIM]
            store(layout, said, conversations_of(said))
        with pytest.raises(NotReady, match="erased meanwhile"):
            PersonalTrainer(run, QUIET).learn(owner)
        assert personal_store.known_owners(layout) == []
        assert RECORDED == []


def test_a_refused_update_is_an_attempt_with_its_reason(run: Run, layout: Layout, learner: Learner):
    def refuse() -> None:
        raise LearnerError("drift stop at step 3")

    learner.meanwhile = refuse
    attempt = PersonalTrainer(run, QUIET).learn(owner_of(layout, "ann"))
    assert (attempt.verdict, attempt.report) == (Verdict.REJECT, None)
    assert attempt.reasons == ("no candidate: drift stop at step 3",)


def test_an_interrupted_update_starts_over(run: Run, layout: Layout, learner: Learner):
    def away() -> None:
        raise ReleaseError("the evaluator does not answer")

    learner.meanwhile = away
    ann = owner_of(layout, "ann")
    with pytest.raises(ReleaseError):
        PersonalTrainer(run, QUIET).learn(ann)
    learner.meanwhile = lambda: None
    assert PersonalTrainer(run, QUIET).learn(ann).version == 1


def test_too_few_interactions_are_refused_with_their_number(run: Run, layout: Layout, learner: Learner):
    more = run.model_copy(update={"personal": run.personal.model_copy(update={"min_interactions": 41})})
    with pytest.raises(DataError, match=r"40 interactions to learn from: personal.min_interactions is 41"):
        PersonalTrainer(more, QUIET).learn(owner_of(layout, "ann"))
    assert learner.arguments == {}


def test_a_policy_under_a_new_key_replaces_the_one_under_the_old_key(run: Run, layout: Layout, learner: Learner):
    before = owner_of(layout, "ann")
    PersonalTrainer(run, QUIET).learn(before)
    Pseudonyms.load(layout.pseudonym_keys).rotate()
    after = owner_of(layout, "ann")
    PersonalTrainer(run, QUIET).learn(after)
    assert personal_store.known_owners(layout) == [after.digest]


def test_a_run_whose_engines_serve_no_adapters_is_refused_with_what_to_set(run: Run):
    adapters = {"lora": {"rank": 8, "alpha": 16}}
    for serving, distill in (({}, {}), ({"swap": "adapter", "adapters": 4}, adapters)):
        configured = parse_run({"serve": serving, "distill": distill})
        with pytest.raises(ConfigError, match=r"serve.swap = 'in_place' and serve.adapters of 1 or more"):
            PersonalTrainer(configured, QUIET)
    small = parse_run({"serve": {"adapters": 1, "max_lora_rank": 4}})
    with pytest.raises(ConfigError, match=r"personal.rank = 8 is more than serve.max_lora_rank = 4"):
        PersonalTrainer(small, QUIET)


def test_the_learner_has_the_runs_configuration_with_the_section_personal():
    laptop = load_run("jobs/recipes/laptop.toml")
    config = distill_config(laptop)
    assert (config.lora.rank, config.lora.alpha) == (laptop.personal.rank, laptop.personal.alpha)
    assert config.learning_rate == laptop.personal.learning_rate
    assert (config.batch_size, config.epochs) == (laptop.personal.batch_size, laptop.personal.epochs)
    assert config.teacher == laptop.distill.teacher
    assert config.signal == laptop.distill.signal.model_copy(update={"max_staleness": None})
    assert config.workers == laptop.distill.workers
