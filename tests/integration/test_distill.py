"""The whole update on a local Ray cluster: workers, DeepSpeed, export."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Distill
from sdpo_ray.distill.export import fingerprint
from sdpo_ray.distill.launch import distill
from sdpo_ray.errors import LearnerError
from sdpo_ray.records import Candidate, Interaction, Refusal, Snapshot
from sdpo_ray.storage import is_ready
from tests.builders import interaction, release, snapshot, tiny_policy, with_turn

pytestmark = pytest.mark.integration

# Eleven interactions in batches of five: with two workers shards of 3 and 2, and at last 1 and none.
_CONFIG = Distill(batch_size=5, learning_rate=1e-4, max_tokens_per_micro_batch=600)
_TEMPERATURES = (1.0, 0.7, 0.0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def interactions(policy: Path) -> list[Interaction]:
    chat = ChatFormat(policy)
    return [
        interaction(
            chat,
            name=f"t{index:02d}",
            prompt="What is the capital of France?" * (1 + index % 3),
            response="Paris. " * (1 + index % 4),
            follow_up=("Shorter please.", "No emojis!", "")[index % 3],
            temperature=_TEMPERATURES[index % 3],
        )
        for index in range(11)
    ]


@pytest.fixture(scope="module")
def drawn(interactions: list[Interaction], tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The interactions, with two among them that nothing can be learned from."""
    stale = with_turn(replace(interactions[0], interaction_id="stale"), prompt_ids=(1, 2, 3))
    silent = with_turn(replace(interactions[1], interaction_id="silent"), response_ids=(), response_logprobs=())
    drawn = [stale, *interactions[:6], silent, *interactions[6:]]
    return snapshot(tmp_path_factory.mktemp("drawn") / "s0", drawn)


@pytest.fixture(scope="module")
def alone(ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """The candidate of one worker without ZeRO: what every other arrangement must equal."""
    return _distill(policy, drawn, tmp_path_factory.mktemp("alone") / "v0001", _CONFIG)


def test_one_update_is_the_adamw_steps_of_the_paper_s_loss(
    alone: Candidate, policy: Path, interactions: list[Interaction]
) -> None:
    expected, losses, norms = _reference(policy, interactions)
    _assert_same_update(load_file(Path(alone.path) / "model.safetensors"), expected, policy)
    assert [step.loss for step in alone.steps] == pytest.approx(losses, abs=1e-5)
    assert [step.gradient_norm for step in alone.steps] == pytest.approx(norms, rel=1e-4)
    assert [step.num_sequences for step in alone.steps] == [5, 5, 1]
    assert alone.refusals == (Refusal(reason="empty_response", n=1), Refusal(reason="prompt_mismatch", n=1))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_workers_at_any_zero_stage_equal_one(
    zero_stage: int, alone: Candidate, policy: Path, drawn: Snapshot, tmp_path: Path
) -> None:
    config = _CONFIG.model_copy(update={"num_workers": 2, "zero_stage": zero_stage})
    pair = _distill(policy, drawn, tmp_path / "v0001", config)
    ours, theirs = (load_file(Path(candidate.path) / "model.safetensors") for candidate in (pair, alone))
    _assert_same_update(ours, theirs, policy)
    for mine, other in zip(pair.steps, alone.steps, strict=True):
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
        assert (mine.loss, mine.abs_advantage, mine.sampler_gap) == pytest.approx(
            (other.loss, other.abs_advantage, other.sampler_gap), abs=1e-5
        )
        assert (mine.num_sequences, mine.num_tokens) == (other.num_sequences, other.num_tokens)


def test_the_candidate_is_whole_and_what_it_says_it_is(alone: Candidate, policy: Path) -> None:
    path = Path(alone.path)
    assert is_ready(path)
    assert (alone.policy_version, alone.parent_version, alone.snapshot_id) == (1, 0, "s0")
    assert alone.fingerprint == fingerprint(path)
    assert alone.fingerprint.logprobs != fingerprint(policy).logprobs
    assert load_file(path / "model.safetensors").keys() == load_file(policy / "model.safetensors").keys()
    assert not list(path.parent.glob(".*")), "nothing of the run is left behind"


def test_a_sealed_candidate_is_returned_without_training(alone: Candidate, policy: Path, drawn: Snapshot) -> None:
    before = (Path(alone.path) / "model.safetensors").stat().st_mtime_ns
    assert _distill(policy, drawn, Path(alone.path), _CONFIG) == alone
    assert (Path(alone.path) / "model.safetensors").stat().st_mtime_ns == before


def test_a_killed_worker_is_started_again_from_the_first_step(
    ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path: Path
) -> None:
    config = _CONFIG.model_copy(update={"epochs": 20})
    killed: list[int] = []
    progress: list[tuple[int, int]] = []

    def kill_once(step: int, num_steps: int) -> None:
        progress.append((step, num_steps))
        if not killed:
            workers = [child for child in psutil.Process().children(recursive=True) if _is_train_worker(child)]
            killed.extend(worker.pid for worker in workers)
            for worker in workers:
                worker.kill()

    restarted = _distill(policy, drawn, tmp_path / "v0001", config, on_step=kill_once)
    assert len(killed) == 1
    assert [step.step for step in restarted.steps] == list(range(1, 61))
    assert progress[0][0] < 60
    assert {num_steps for _, num_steps in progress} == {60}


def test_a_broken_policy_is_a_learner_error(ray_cluster: str, drawn: Snapshot, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken = tiny_policy(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LearnerError, match="no sequence has finite log-probs under hindsight"):
        _distill(broken, drawn, tmp_path / "v0001", _CONFIG)
    assert not is_ready(tmp_path / "v0001")


def _distill(
    policy: Path,
    drawn: Snapshot,
    out: Path,
    config: Distill,
    on_step: Callable[[int, int], None] | None = None,
) -> Candidate:
    return distill(
        snapshot=drawn,
        parent=release(policy),
        policy_version=1,
        out=out,
        config=config,
        max_model_len=512,
        seed=0,
        on_step=on_step,
    )


def _is_train_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _assert_same_update(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], policy: Path) -> None:
    """Equal to 1e-5, but for the odd weight whose gradient is rounding noise, which Adam scales up to a whole step."""
    base = load_file(policy / "model.safetensors")
    assert ours.keys() == base.keys()
    for name in ours:
        difference = ours[name] - theirs[name]
        assert (difference.abs() > 1e-5).sum() <= max(2, difference.numel() // 1000), name
        assert difference.norm() <= 0.01 * (theirs[name] - base[name]).norm(), name


def _reference(
    policy: Path, interactions: list[Interaction]
) -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    """The same update in twenty lines: whole logits, one sequence at a time, torch's own AdamW."""
    from transformers import AutoModelForCausalLM

    chat = ChatFormat(policy)
    model = AutoModelForCausalLM.from_pretrained(str(policy), dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    block = (
        "\n\n=== HINDSIGHT CONTEXT ===\n"
        "[The following is a future user message. Use this to guide your answer to the user prompt.]\n"
    )

    def logprobs(context: tuple[int, ...], each: Interaction) -> torch.Tensor:
        ids = torch.tensor([context + each.turn.response_ids])
        logits = model(input_ids=ids).logits[0] / (each.turn.sampling.temperature or 1.0)
        every = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        return every[len(context) - 1 :]

    losses, norms = [], []
    for start in range(0, len(interactions), 5):
        batch = interactions[start : start + 5]
        loss = torch.zeros(())
        for each in batch:
            (message,) = each.turn.messages
            with_block = type(message)(role=message.role, content=message.content + block + each.follow_up)
            context = chat.prompt_ids([with_block]) if each.follow_up else each.turn.prompt_ids
            lived = logprobs(each.turn.prompt_ids, each)
            advantage = (logprobs(context, each) - lived).detach()
            loss = loss - (advantage * lived).mean() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return dict(model.state_dict()), losses, norms
