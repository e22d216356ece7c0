"""Personal policies from simulated interactions to the adapter, with the real learner, evaluator and MLflow."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from mlflow import MlflowClient

from sdpo_ray.chat import ChatFormat
from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import Run, load_run
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.curate.snapshot import HELD_OUT
from sdpo_ray.distill.data.contexts import hindsight_block
from sdpo_ray.distill.model.hf_sampling import sample
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.personal.owners import Owner, owner_named
from sdpo_ray.personal.trainer import PersonalTrainer, ProgressCallbacks
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.erasure import Erasure
from sdpo_ray.records import BASE_VERSION, Interaction, Message, Release, Role, Verdict
from sdpo_ray.simulate.users import PERSONAS, react, violations
from sdpo_ray.simulate.world import sample_prompt
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_interactions
from tests.support.builders import interaction, release, snapshot, tiny_policy
from tests.support.paths import CHECKPOINT
from tests.support.serving import Served
from tests.support.user_data import hits, pseudonym

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
TASTE, CROWD = PERSONAS["cheerful"], PERSONAS["concise"]
SAID = 80
QUIET = ProgressCallbacks(on_step=lambda step: None, on_progress=lambda done, total: None)


@dataclass(frozen=True)
class Town:
    """A run with two users who got the same answers: one reacts by personal taste, the other by the majority's."""

    run: Run
    layout: Layout
    base: Path
    said: list[Interaction]
    """Interactions of the first user."""

    def owner(self, user: str) -> Owner:
        return owner_named(self.layout, tenant="default", user=user, whole_tenant=False)


def asked(prompt: str) -> tuple[Message]:
    return (Message(role=Role.USER, content=prompt),)


def answers(model: Any, chat: ChatFormat, prompts: list[str], *, seed: int = 0) -> list[Any]:
    return [
        sample(model, chat, asked(prompt), turn_id=f"p-{n}", policy_version=BASE_VERSION, seed=seed + n, max_tokens=48)
        for n, prompt in enumerate(prompts)
    ]


def heard(layout: Layout, turns: list[Any], user: str, share: float) -> list[Interaction]:
    """Reactions to each answer. `shuffled` reacts like the majority in training data, by its own taste in held-out."""
    rng, name = random.Random("taste"), pseudonym(layout, user)
    found = []
    for number, turn in enumerate(turns):
        conversation = f"{number:08x}" + "0" * 24
        own = user != "shuffled" or is_held_out(conversation, share)
        found.append(
            Interaction(
                interaction_id=f"{user}-{number}",
                turn=replace(turn, turn_id=f"{user}-{number}", tenant="default", user=name),
                follow_up=react(TASTE if own else CROWD, turn.response, rng),
                follow_up_turn_id=f"{user}-{number}-next",
                follow_up_at_s=turn.finished_at_s + number,
                conversation=conversation,
            )
        )
    return found


@pytest.fixture(scope="module")
def town(served: Served, evaluator: str) -> Town:
    overrides = [
        *served.overrides,
        f"serve.port={urlparse(served.url).port}",
        "serve.adapters=1",
        "evaluate.num_prompts=64",
        "curate.max_age_days=100000",
    ]
    run = load_run(LAPTOP, overrides)
    rng, chat = random.Random("town"), ChatFormat(CHECKPOINT)
    turns = answers(load_policy(CHECKPOINT), chat, [sample_prompt(rng, "train").prompt for _ in range(SAID)])
    people = {user: heard(served.layout, turns, user, run.personal.held_out) for user in ("cheerful", "shuffled")}
    table = Table.interactions(served.layout)
    while table.append(interactions_to_arrow([each for said in people.values() for each in said]), {}) is None:
        table.refresh()
    return Town(run=run, layout=served.layout, base=CHECKPOINT, said=people["cheerful"])


@pytest.fixture(scope="module")
def attempt(town: Town) -> store.Attempt:
    assert read_json(town.layout.release_pointer, Release).policy_version == BASE_VERSION
    return PersonalTrainer(town.run, QUIET).learn(town.owner("cheerful"))


def adapted(town: Town, policy: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_policy(town.base), policy.adapter).eval()


def test_a_user_of_unusual_taste_gets_a_personal_policy(town: Town, attempt: store.Attempt):
    assert attempt.verdict is Verdict.PROMOTE, attempt.reasons
    owner = town.owner("cheerful").digest
    policy = store.served_policy(town.layout, owner)
    assert policy is not None
    assert (policy.name, policy.base_version, policy.version) == (attempt.name, BASE_VERSION, 1)
    model, chat = adapted(town, policy), ChatFormat(town.base)
    ids = torch.tensor([policy.fingerprint.token_ids])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    assert logp.tolist() == pytest.approx(policy.fingerprint.logprobs, abs=1e-3)
    rng = random.Random("unseen")
    prompts = [sample_prompt(rng, "held_out").prompt for _ in range(60)]
    wrong = [
        fmean(len(violations(TASTE, turn.response)) for turn in answers(each, chat, prompts, seed=1000))
        for each in (load_policy(town.base), model)
    ]
    assert wrong[1] < wrong[0] - 0.1, "wishes that an answer to a question nobody asked leaves open"


def test_the_gain_is_what_transformers_computes_of_what_was_held_out(town: Town, attempt: store.Attempt):
    policy = store.served_policy(town.layout, attempt.owner)
    held_out = read_interactions(Path(attempt.snapshot.path) / HELD_OUT)
    assert {each.interaction_id for each in held_out}.isdisjoint(attempt.snapshot.interaction_ids)
    shared, own, chat = load_policy(town.base), adapted(town, policy), ChatFormat(town.base)

    def logp(model: Any, context: tuple[int, ...], each: Interaction) -> torch.Tensor:
        ids = torch.tensor([context + each.turn.response_ids])
        with torch.no_grad():
            return model(input_ids=ids).logits[0, len(context) - 1 : -1].log_softmax(-1)

    nats, tokens = 0.0, 0
    for each in held_out:
        block = hindsight_block(town.run.distill.context.template, each.follow_up)
        told = chat.prompt_ids(asked(each.turn.messages[0].content + block))
        target = logp(shared, told, each)
        before, after = (logp(model, each.turn.prompt_ids, each) for model in (shared, own))
        nats += sum(sign * float((p.exp() * (p - target)).sum()) for sign, p in ((1, before), (-1, after)))
        tokens += len(each.turn.response_ids)
    assert attempt.report is not None
    gain = attempt.report.score("gain")
    assert gain is not None
    assert gain.value == pytest.approx(nats / tokens, rel=1e-3)
    assert gain.n == len(held_out)
    assert 0 < gain.low < gain.value


def test_a_policy_trained_on_other_users_follow_ups_is_not_served(town: Town, attempt: store.Attempt):
    refused = PersonalTrainer(town.run, QUIET).learn(town.owner("shuffled"))
    assert refused.verdict is not Verdict.PROMOTE
    assert refused.name == ""
    assert refused.report is not None
    gain, theirs = refused.report.score("gain"), attempt.report and attempt.report.score("gain")
    assert gain is not None
    assert theirs is not None
    assert gain.value < 0 < theirs.value
    assert store.served_policy(town.layout, refused.owner) is None
    last = store.newest_attempt(town.layout, refused.owner)
    assert last == refused
    assert sorted(path.name for path in town.layout.personal_version(refused.owner, 1).iterdir()) == [
        "outcome.json",
        "snapshot",
    ]


def test_mlflow_has_numbers_but_no_user_text_and_erasure_removes_them(town: Town, attempt: store.Attempt):
    mlflow = MlflowClient(f"sqlite:///{town.layout.root.resolve()}/mlflow.db")
    experiment = mlflow.get_experiment_by_name("policy-personal")
    (run,) = mlflow.search_runs([experiment.experiment_id], f"tags.owner = '{attempt.owner}'")
    assert run.data.tags["verdict"] == "PROMOTE"
    assert run.data.tags["serves"] == attempt.name
    assert run.data.params["snapshot_digest"] == attempt.snapshot.digest
    assert run.data.params["distill.lora.rank"] == str(town.run.personal.rank)
    assert run.data.metrics["gain"] > 0
    assert mlflow.list_artifacts(run.info.run_id) == []
    assert all(each.name == "policy" for each in mlflow.search_registered_models())

    asked_for = find_data_subject(town.layout, tenant="default", user="cheerful", turn_ids=())
    with Erasure(town.run, asked_for, lambda words: None) as erasure:
        erased = erasure.execute()
    assert erased.personal == [attempt.owner]
    assert erased.rows["interactions"] == SAID
    assert mlflow.search_runs([experiment.experiment_id], f"tags.owner = '{attempt.owner}'") == []
    assert "owner" not in mlflow.get_run(run.info.run_id).data.tags
    assert not town.layout.personal_pointer(attempt.owner).exists()
    assert not (town.layout.personal / attempt.owner).exists()
    assert hits(town.layout.root, [pseudonym(town.layout, "cheerful")]) == {}


def test_a_personal_adapter_is_trained_over_the_champions_merged_weights(ray_cluster: str, tmp_path: Path):
    """Holds also for a champion that is itself an adapter of the same shape over the run's base."""
    from peft import PeftModel
    from safetensors.torch import load_file

    base = tiny_policy(tmp_path / "base")
    chat = ChatFormat(base)
    drawn = snapshot(tmp_path / "s", [interaction(chat, name=f"t{n}", response="Paris. " * (n + 1)) for n in range(4)])
    apart = snapshot(tmp_path / "h", [interaction(chat, name=f"h{n}", response="Rome. " * (n + 1)) for n in range(3)])
    settings: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8}}
    config = load_run(LAPTOP).distill.model_validate(settings)
    common: dict[str, Any] = {"snapshot": drawn, "config": config, "max_model_len": 512, "seed": 0}
    champion = distill(parent=release(base), policy_version=1, out=tmp_path / "v1", base=base, **common)
    own = distill(
        parent=release(Path(champion.path), policy_version=1),
        policy_version=1,
        out=tmp_path / "own",
        base=Path(champion.path),
        held_out=Path(apart.path),
        **common,
    )
    shared, whole = (load_policy(Path(each.path)) for each in (champion, own))
    ids = torch.arange(5, 60)[None]
    assert not torch.allclose(shared(ids).logits, whole(ids).logits, atol=1e-3)
    over = PeftModel.from_pretrained(shared, Path(own.path) / "adapter")
    torch.testing.assert_close(whole(ids).logits, over(ids).logits, rtol=1e-4, atol=1e-4)
    first, second = (load_file(Path(e.path) / "adapter" / "adapter_model.safetensors") for e in (champion, own))
    assert any((first[name] - second[name]).abs().max() > 1e-2 for name in first), "it did not go on with the other"
    assert own.steps[0].kl_to_base == pytest.approx(0, abs=1e-6), "drift is measured from the champion"
    assert own.attributions == ()
    assert champion.attributions
