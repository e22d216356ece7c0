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
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.attribution.relevance import read_relevance
from sdpo_ray.distill.attribution.token_attribution import token_attributions
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.train.export import fingerprint
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.errors import LearnerError
from sdpo_ray.io.files import is_ready
from sdpo_ray.records import Candidate, Interaction, RefusalCount, Snapshot
from sdpo_ray.telemetry import Counters
from tests.support.builders import interaction, release, snapshot, tiny_policy, with_turn
from tests.support.configs import PAPER

pytestmark = pytest.mark.integration

_PAPER = PAPER | {"batch_size": 5, "learning_rate": 1e-4, "drift": {"max_kl_to_base": None}}
# Eleven interactions in batches of five: with two workers the last batch leaves one without any.
_CONFIG = DistillConfig(**_PAPER)
_SHARDED = DistillConfig(
    batch_size=5,
    learning_rate=1e-3,
    lora={"rank": 4, "alpha": 8},  # type: ignore[arg-type]
    workers={"num_workers": 2, "min_workers": 1, "zero_stage": 3},  # type: ignore[arg-type]
)
_TEMPERATURES = (1.0, 0.7, 0.0)


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
    """The interactions, two of which are not trainable."""
    stale = with_turn(replace(interactions[0], interaction_id="stale"), prompt_ids=(1, 2, 3))
    silent = with_turn(replace(interactions[1], interaction_id="silent"), response_ids=(), response_logprobs=())
    drawn = [stale, *interactions[:6], silent, *interactions[6:]]
    return snapshot(tmp_path_factory.mktemp("drawn") / "s0", drawn)


@pytest.fixture(scope="module")
def alone(ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """The candidate of one worker without ZeRO."""
    return _distill(policy, drawn, tmp_path_factory.mktemp("alone") / "v0002", _CONFIG)


def test_one_update_is_the_adamw_steps_of_the_paper_s_loss(
    alone: Candidate, policy: Path, interactions: list[Interaction]
) -> None:
    expected, losses, norms = _reference(policy, interactions)
    _assert_same_update(load_file(Path(alone.path) / "model.safetensors"), expected, policy)
    assert [step.loss for step in alone.steps] == pytest.approx(losses, abs=1e-5)
    assert [step.gradient_norm for step in alone.steps] == pytest.approx(norms, rel=1e-4)
    assert [step.num_sequences for step in alone.steps] == [5, 5, 1]
    assert alone.refusals == (RefusalCount(reason="empty_response", n=1), RefusalCount(reason="prompt_mismatch", n=1))


def test_two_workers_under_zero_3_export_an_adapter_that_the_next_update_resumes(
    ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    first = _distill(policy, drawn, tmp_path / "v0002", _SHARDED)
    path = Path(first.path)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, path / "adapter")
    ids = torch.arange(5, 60)[None]
    torch.testing.assert_close(whole(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    averaged = load_file(path / "teacher" / "weights.safetensors")
    assert averaged
    assert all(".lora_" in name for name in averaged)
    assert [file.name for file in path.glob("*.safetensors")] == ["model.safetensors"], "vLLM loads all that is there"

    second = distill(
        snapshot=drawn,
        parent=release(path, policy_version=2),
        policy_version=3,
        out=tmp_path / "v0003",
        config=_SHARDED,
        max_model_len=512,
        seed=1,
        base=policy,
    )
    before, after = (load_file(Path(each.path) / "adapter" / "adapter_model.safetensors") for each in (first, second))
    moved = max((after[name] - before[name]).abs().max() for name in before)
    assert 0 < moved < 0.01, "it began where the parent's adapter had ended"
    assert second.steps[0].kl_to_base > 0 == first.steps[0].kl_to_base


def test_drift_ends_a_run_with_its_reason(ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path: Path) -> None:
    config = DistillConfig(**(_PAPER | {"learning_rate": 1e-2, "epochs": 5, "drift": {"max_kl_to_base": 0.01}}))
    with pytest.raises(LearnerError, match=r"drift stop at step \d+: KL to the base is .* drift.max_kl_to_base = 0.01"):
        _distill(policy, drawn, tmp_path / "v0002", config)


def test_the_candidate_is_complete_and_matches_its_record(alone: Candidate, policy: Path) -> None:
    path = Path(alone.path)
    assert is_ready(path)
    assert (alone.policy_version, alone.parent_version, alone.snapshot_id) == (2, 1, "s0")
    assert alone.fingerprint == fingerprint(path)
    assert alone.fingerprint.logprobs != fingerprint(policy).logprobs
    assert load_file(path / "model.safetensors").keys() == load_file(policy / "model.safetensors").keys()
    assert not list(path.parent.glob(".*")), "nothing of the run is left behind"


def test_relevance_of_follow_ups_is_measured_before_the_first_step(
    alone: Candidate, policy: Path, interactions: list[Interaction]
) -> None:
    """The reference is transformers' log-probs, one sequence at a time."""
    model, chat = load_policy(policy), ChatFormat(policy)
    by_id = {each.interaction_id: each for each in interactions}
    texts = {each.follow_up for each in interactions} - {""}

    def size(asked: Interaction, follow_up: str) -> float:
        (found,) = token_attributions(
            model,
            chat,
            [replace(asked, follow_up=follow_up)],
            config=_CONFIG,
            max_model_len=512,
            refused=Counters.empty(),
        )
        return sum(map(abs, found.advantages)) / len(found.advantages)

    relevance = read_relevance(Path(alone.path))
    assert {each.interaction_id for each in relevance} == by_id.keys(), "fewer than relevance_probes: all of them"
    for each in relevance:
        asked = by_id[each.interaction_id]
        assert each.signal == pytest.approx(size(asked, asked.follow_up), abs=1e-4)
        strangers = [size(asked, text) for text in sorted(texts - {asked.follow_up})]
        assert min(abs(each.floor - size) for size in strangers) < 1e-4
    assert {each.weight for each in relevance if not by_id[each.interaction_id].follow_up} == {0.0}


def test_a_sealed_candidate_is_returned_without_training(alone: Candidate, policy: Path, drawn: Snapshot) -> None:
    before = (Path(alone.path) / "model.safetensors").stat().st_mtime_ns
    assert _distill(policy, drawn, Path(alone.path), _CONFIG) == alone
    assert (Path(alone.path) / "model.safetensors").stat().st_mtime_ns == before


def test_a_killed_worker_resumes_from_the_last_checkpoint_to_the_same_candidate(
    ray_cluster: str, policy: Path, drawn: Snapshot, tmp_path: Path
) -> None:
    config = DistillConfig(**(_PAPER | {"epochs": 20, "teacher": {"kind": "ema"}, "workers": {"checkpoint_every": 4}}))
    killed: list[int] = []
    progress: list[tuple[int, int]] = []

    def kill_once(step: int, num_steps: int) -> None:
        progress.append((step, num_steps))
        if not killed and step > 10:
            workers = [child for child in psutil.Process().children(recursive=True) if _is_train_worker(child)]
            killed.extend(worker.pid for worker in workers)
            for worker in workers:
                worker.kill()

    restarted = _distill(policy, drawn, tmp_path / "killed" / "v0002", config, on_step=kill_once)
    straight = _distill(policy, drawn, tmp_path / "straight" / "v0002", config)
    assert len(killed) == 1
    assert restarted.steps == straight.steps
    assert [step.step for step in restarted.steps] == list(range(1, 61))
    assert restarted.fingerprint == straight.fingerprint
    for name in ("model.safetensors", "teacher/weights.safetensors"):
        assert (Path(restarted.path) / name).read_bytes() == (Path(straight.path) / name).read_bytes()
    assert {num_steps for _, num_steps in progress} == {60}
    assert not list(Path(restarted.path).parent.glob(".*")), "nothing of the run is left behind"


def test_a_broken_policy_is_a_learner_error(ray_cluster: str, drawn: Snapshot, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken = tiny_policy(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LearnerError, match="no sequence has finite log-probs under hindsight"):
        _distill(broken, drawn, tmp_path / "v0002", _CONFIG)
    assert not is_ready(tmp_path / "v0002")


def _distill(
    policy: Path,
    drawn: Snapshot,
    out: Path,
    config: DistillConfig,
    on_step: Callable[[int, int], None] | None = None,
) -> Candidate:
    return distill(
        snapshot=drawn,
        parent=release(policy),
        policy_version=2,
        out=out,
        config=config,
        max_model_len=512,
        seed=0,
        base=policy,
        on_step=on_step,
    )


def _is_train_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _assert_same_update(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], policy: Path) -> None:
    """Equal to 1e-5, except rare weights whose gradient is rounding noise, which Adam scales to a whole step."""
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
